// How ranks find each other, or one process is alone.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace sherd {

/// This process among the ranks. `store` is where they exchange addresses; null when size is 1.
struct World {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  c10::intrusive_ptr<c10d::Store> store;
  std::chrono::milliseconds timeout{60000};
  std::string timeout_argument = "timeout_s";  // as the caller knows it
  std::string host = {};                       // a name for the host that this rank is to count as on; empty: found out
};

/// The world with a corner of its store that no earlier call with this purpose has used. Collective: the n-th call of
/// each rank gets the same corner.
World with_fresh_store(const World& world, const std::string& purpose);

/// Every rank's text, in rank order. Collective, once a name and store. Each rank writes and reads one entry of the
/// store, rank 0 one a rank: it puts them together.
std::vector<std::string> gather_texts(const World& world, const std::string& name, const std::string& mine);

/// Joins the ranks that the environment names (see launch_environment.h), or is alone. Rank 0 serves the store;
/// SHERD_MASTER_FD may name an inherited listening socket. Throws ConfigError on a malformed environment, FaultError
/// when peers do not come.
World join_world(std::chrono::milliseconds timeout);

}  // namespace sherd
