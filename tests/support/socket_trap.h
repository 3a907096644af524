// Shows that nothing was sent.
//
// How the absence of traffic is shown. Once the segment is shared, every socket of every rank's process is replaced by
// one end of a new socket pair whose other end the test keeps. A byte that anything in the process writes to "its"
// sockets then stays in that pair, where FIONREAD counts it, and never reaches a peer; a read gets nothing. So
// if values travelled through a socket, the peers would not see them (time-out), and the count would not be zero. The
// list of descriptors is compared too, so that no new socket can be opened on the way.
#pragma once

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "sherd/base/error.h"
#include "sherd/base/unique_fd.h"

namespace sherd::testing {

/// Replaces all sockets of this process (but standard input and output) for the rest of its life.
class SocketTrap {
 public:
  SocketTrap() {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0) fault_errno("test", "socketpair");
    inside_ = UniqueFd(pair[0]);
    outside_ = UniqueFd(pair[1]);
    for (int fd = 3; fd < 1024; ++fd) {
      struct stat status = {};
      if (fd == pair[0] || fd == pair[1] || fstat(fd, &status) != 0 || !S_ISSOCK(status.st_mode)) continue;
      if (dup2(pair[0], fd) != fd) fault_errno("test", "dup2");
      ++replaced_;
    }
  }
  int replaced() const { return replaced_; }
  /// Bytes that were written to any of them since.
  int caught() const {
    int bytes = -1;
    ioctl(outside_.get(), FIONREAD, &bytes);
    return bytes;
  }

 private:
  UniqueFd inside_, outside_;
  int replaced_ = 0;
};

}  // namespace sherd::testing
