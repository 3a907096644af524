#include "sherd/comm/rendezvous.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <charconv>
#include <cstdlib>

#include "sherd/base/error.h"

namespace sherd {
namespace {

int integer_from_environment(const char* name, int low, int high) {
  const char* text = std::getenv(name);
  if (text == nullptr) config_error("rendezvous", "got no {} in the environment; try torchrun or --ranks", name);
  const std::string_view view(text);
  int value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc() || end != view.data() + view.size() || value < low || value > high)
    config_error("rendezvous", "got {}={}, expected an integer from {} to {}; try torchrun or --ranks", name, view, low,
                 high);
  return value;
}

}  // namespace

bool launched_by_environment() {
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
    if (std::getenv(name) == nullptr) return false;
  return true;
}

World with_fresh_store(const World& world, const std::string& purpose) {
  World result = world;
  const int64_t calls = world.store->add(fmt::format("sherd/{}/calls/{}", purpose, world.rank), 1);
  result.store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("sherd/{}/{}", purpose, calls), world.store);
  return result;
}

World join_world(std::chrono::milliseconds timeout) {
  World world;
  world.timeout = timeout;
  if (!launched_by_environment()) return world;
  constexpr int kMaxRanks = 1 << 20;
  world.size = integer_from_environment("WORLD_SIZE", 1, kMaxRanks);
  world.rank = integer_from_environment("RANK", 0, world.size - 1);
  world.local_rank =
      std::getenv("LOCAL_RANK") != nullptr ? integer_from_environment("LOCAL_RANK", 0, kMaxRanks) : world.rank;
  if (world.size == 1) return world;

  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(integer_from_environment("MASTER_PORT", 1, 65535));
  // torchrun's agent may already serve the store on this port.
  const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  options.isServer = world.rank == 0 && (agent == nullptr || std::string_view(agent) != "True");
  options.numWorkers = world.size;
  options.timeout = timeout;
  if (std::getenv("SHERD_MASTER_FD") != nullptr && options.isServer)
    options.masterListenFd = integer_from_environment("SHERD_MASTER_FD", 0, 1 << 20);
  try {
    world.store = c10::make_intrusive<c10d::TCPStore>(std::getenv("MASTER_ADDR"), options);
  } catch (const std::exception& error) {
    fault("rendezvous", "rank {} of {} could not meet the others at {}:{}: {}", world.rank, world.size,
          std::getenv("MASTER_ADDR"), options.port, error.what());
  }
  return world;
}

}  // namespace sherd
