// Ranks as real processes, for tests in which one dies.
#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <vector>

#include "sherd/base/error.h"
#include "sherd/comm/rendezvous.h"

namespace sherd::testing {

/// Exit codes of a rank that returns, throws, or fails an expectation of GoogleTest. Others die by a signal.
constexpr int kRankPassed = 0, kRankThrew = 1, kRankFailed = 3;

/// Forks n processes, runs body(world) in each (they meet in a file), and returns their wait statuses by rank. Each has
/// one compute thread, so that it needs no thread pool, which a fork does not copy. An exception is printed. A process
/// that stops itself is killed when all others have ended; after `limit`, all are, so no test hangs.
inline std::vector<int> run_processes(int n, const std::function<void(const World&)>& body,
                                      std::chrono::milliseconds timeout = std::chrono::seconds(30),
                                      std::chrono::milliseconds limit = std::chrono::seconds(60)) {
  std::string folder = (std::filesystem::temp_directory_path() / "sherd-ranks-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) fault_errno("processes", "cannot make a temporary folder");
  std::fflush(nullptr);
  const pid_t parent = getpid();
  const auto child = [&](int rank) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) return kRankThrew;
    at::set_num_threads(1);
    const bool failed_before = ::testing::Test::HasFailure();
    try {
      World world{.rank = rank, .size = n, .local_rank = rank, .store = nullptr, .timeout = timeout};
      world.store = c10::make_intrusive<c10d::FileStore>(folder + "/store", n);
      world.store->setTimeout(timeout);
      body(world);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
      return kRankThrew;
    }
    return ::testing::Test::HasFailure() && !failed_before ? kRankFailed : kRankPassed;
  };
  std::vector<pid_t> pids;
  for (int rank = 0; rank < n; ++rank) {
    pids.push_back(fork());
    if (pids.back() == 0) {
      const int code = child(rank);
      std::fflush(nullptr);
      _exit(code);
    }
  }

  std::vector<int> statuses(static_cast<size_t>(n), -1);
  const auto deadline = std::chrono::steady_clock::now() + limit;
  size_t running = pids.size(), stopped = 0;
  while (running > 0) {
    for (size_t r = 0; r < pids.size(); ++r) {
      int status = 0;
      if (pids[r] <= 0 || waitpid(pids[r], &status, WNOHANG | WUNTRACED) != pids[r]) continue;
      if (WIFSTOPPED(status)) {
        ++stopped;
        continue;
      }
      statuses[r] = status;
      pids[r] = 0;
      --running;
    }
    if (running > 0 && (running == stopped || std::chrono::steady_clock::now() > deadline))
      for (const pid_t pid : pids)
        if (pid > 0) kill(pid, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::filesystem::remove_all(folder);
  return statuses;
}

}  // namespace sherd::testing
