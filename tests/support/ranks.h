// Ranks for tests: n threads of this process, each with a transport, or n real processes (processes.h).
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <exception>
#include <memory>
#include <mutex>
#include <ostream>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "sherd/comm/c10d_transport.h"
#include "sherd/comm/gloo_backend.h"
#include "sherd/comm/host_segment.h"
#include "sherd/comm/hosts_transport.h"
#include "sherd/comm/thread_group.h"
#include "tests/support/processes.h"  // IWYU pragma: export

namespace sherd::testing {

/// The transports that join several ranks. One rank is always solo.
enum class Kind { threads, host, gloo, hosts };
inline const std::vector<Kind> kKinds = {Kind::threads, Kind::host, Kind::gloo};
/// With that of several hosts: the first half of the ranks, and the others.
inline const std::vector<Kind> kAllKinds = {Kind::threads, Kind::host, Kind::gloo, Kind::hosts};

inline const char* name_of(Kind kind) {
  constexpr std::array<const char*, 4> names = {"threads", "host", "gloo", "hosts"};
  return names[static_cast<size_t>(kind)];
}
inline void PrintTo(Kind kind, std::ostream* out) { *out << name_of(kind); }  // NOLINT: GoogleTest's name

/// cpu, and cuda where there is one.
inline std::vector<at::Device> test_devices() {
  std::vector<at::Device> devices{at::kCPU};
  if (at::hasCUDA()) devices.emplace_back(at::kCUDA);
  return devices;
}

/// The transport of one rank of `world`; `group` serves Kind::threads.
inline std::shared_ptr<Transport> make_transport(const World& world, Kind kind, ThreadGroup& group) {
  if (world.size == 1) return solo_transport();
  switch (kind) {
    case Kind::threads:
      return group.transport(world.rank);
    case Kind::host: {
      auto host = HostSegment::connect(world);
      if (!host) fault("ranks", "the host segment did not connect");
      return host;
    }
    case Kind::gloo:
      return std::make_shared<C10dTransport>(world, gloo_backend, "gloo");
    case Kind::hosts: {
      World declared = world;
      declared.host = 2 * world.rank < world.size ? "first" : "second";
      return HostsTransport::join(declared, std::make_shared<C10dTransport>(declared, gloo_backend, "gloo"));
    }
  }
  return nullptr;
}

using SharedBody = std::function<void(std::shared_ptr<Transport>)>;
using Body = std::function<void(Transport&)>;

/// Runs body on n threads, each a rank with one compute thread. The first exception of any rank is thrown here, once
/// all ranks have ended: the failing rank aborts its transport, which frees the others.
inline void run_ranks(int n, Kind kind, const SharedBody& body,
                      std::chrono::milliseconds timeout = std::chrono::seconds(60)) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  store->setTimeout(timeout);
  ThreadGroup group(n, timeout);
  std::mutex mutex;
  std::exception_ptr first;
  const auto run = [&](int rank) {
    at::set_num_threads(1);
    std::shared_ptr<Transport> transport;
    const auto failed = [&](const char* cause) {
      {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      if (transport) transport->abort(cause);
    };
    try {
      transport = make_transport({.rank = rank, .size = n, .local_rank = rank, .store = store, .timeout = timeout},
                                 kind, group);
      body(transport);
    } catch (const std::exception& error) {
      failed(error.what());
    } catch (...) {
      failed("an unknown exception");
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < n; ++rank) threads.emplace_back(run, rank);
  }
  if (first) std::rethrow_exception(first);
}

inline void run_ranks(int n, Kind kind, const Body& body,
                      std::chrono::milliseconds timeout = std::chrono::seconds(60)) {
  run_ranks(n, kind, SharedBody([&body](const std::shared_ptr<Transport>& transport) { body(*transport); }), timeout);
}

}  // namespace sherd::testing
