#include "sherd/comm/peer_watch.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>

#include "tests/support/process_maps.h"

namespace sherd {
namespace {

/// A process that waits to be killed.
class Sleeper {
 public:
  Sleeper() : pid_(fork()) {
    if (pid_ == 0)
      while (true) pause();
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  ~Sleeper() {
    end();
    reap();
  }
  pid_t pid() const { return pid_; }
  /// Kills it and returns when it has ended; it stays a zombie.
  void end() {
    if (reaped_) return;
    kill(pid_, SIGKILL);
    siginfo_t info;
    waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  void reap() {
    if (!reaped_) waitpid(pid_, nullptr, 0);
    reaped_ = true;
  }

 private:
  pid_t pid_;
  bool reaped_ = false;
};

TEST(PeerWatch, NamesTheRankWhoseProcessEnded) {
  Sleeper first, second;
  const PeerWatch watch({getpid(), first.pid(), second.pid()});
  EXPECT_EQ(watch.dead_rank(), std::nullopt);
  second.end();
  EXPECT_EQ(watch.dead_rank(), 2);
  second.reap();
  EXPECT_EQ(watch.dead_rank(), 2) << "also when its number is free again";
  first.end();
  EXPECT_EQ(watch.dead_rank(), 1);
}

TEST(PeerWatch, AStoppedProcessIsAlive) {
  Sleeper peer;
  const PeerWatch watch({peer.pid()});
  kill(peer.pid(), SIGSTOP);
  waitpid(peer.pid(), nullptr, WUNTRACED);
  EXPECT_EQ(watch.dead_rank(), std::nullopt);
  EXPECT_EQ(watch.stopped_rank(), 0);
  kill(peer.pid(), SIGCONT);
  waitpid(peer.pid(), nullptr, WCONTINUED);
  EXPECT_EQ(watch.stopped_rank(), std::nullopt);
}

TEST(PeerWatch, ItselfAndUnknownProcessesAreNotWatched) {
  const auto before = testing::open_descriptors();
  EXPECT_EQ(PeerWatch().dead_rank(), std::nullopt);
  const PeerWatch watch({getpid(), 0, getpid()});
  EXPECT_EQ(watch.dead_rank(), std::nullopt);
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST(PeerWatch, AProcessThatEndedBeforeItWasWatchedIsDead) {
  Sleeper peer;
  peer.end();
  EXPECT_EQ(PeerWatch({getpid(), peer.pid()}).dead_rank(), 1) << "as a zombie";
  peer.reap();
  EXPECT_EQ(PeerWatch({getpid(), peer.pid()}).dead_rank(), 1) << "and when nothing is left of it";
}

}  // namespace
}  // namespace sherd
