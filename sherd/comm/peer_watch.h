// Notices that a peer process on this host has ended: one pidfd a peer, asked without blocking.
#pragma once

#include <sys/types.h>

#include <optional>
#include <vector>

#include "sherd/base/unique_fd.h"

namespace sherd {

class PeerWatch {
 public:
  PeerWatch() = default;
  /// pids[r] is rank r's process, or 0 where it is unknown; this process itself (ranks as threads) is never watched.
  /// Throws FaultError when there are too few file descriptors; a kernel without pidfds watches nobody.
  explicit PeerWatch(const std::vector<pid_t>& pids);

  /// Ranks whose processes have ended, and the first of them. One poll system call.
  std::vector<int> dead_ranks() const;
  std::optional<int> dead_rank() const;
  /// A rank whose process is stopped (SIGSTOP, a debugger). Reads a file of /proc for each peer.
  std::optional<int> stopped_rank() const;

 private:
  struct Watched {
    int rank;
    pid_t pid;
    UniqueFd pidfd;
  };
  std::vector<Watched> watched_;
  std::optional<int> gone_;  // ended before it could be watched
};

}  // namespace sherd
