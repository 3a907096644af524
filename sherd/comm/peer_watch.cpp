#include "sherd/comm/peer_watch.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "sherd/base/error.h"

namespace sherd {

PeerWatch::PeerWatch(const std::vector<pid_t>& pids) {
  for (size_t rank = 0; rank < pids.size(); ++rank) {
    if (pids[rank] == 0 || pids[rank] == getpid()) continue;
    UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_open, pids[rank], 0)));
    if (!fd && (errno == EMFILE || errno == ENFILE))
      fault_errno("peers", fmt::format("cannot watch rank {}; try ulimit -n 4096", rank));
    if (!fd && errno == ESRCH && !gone_) gone_ = static_cast<int>(rank);
    if (fd) watched_.push_back({static_cast<int>(rank), pids[rank], std::move(fd)});
  }
}

std::vector<int> PeerWatch::dead_ranks() const {
  std::vector<int> dead;
  if (gone_) dead.push_back(*gone_);
  std::vector<pollfd> polled;
  for (const auto& peer : watched_) polled.push_back({peer.pidfd.get(), POLLIN, 0});
  if (polled.empty() || poll(polled.data(), polled.size(), 0) <= 0) return dead;
  for (size_t i = 0; i < polled.size(); ++i)
    if (polled[i].revents != 0) dead.push_back(watched_[i].rank);
  return dead;
}

std::optional<int> PeerWatch::dead_rank() const {
  const std::vector<int> dead = dead_ranks();
  return dead.empty() ? std::nullopt : std::optional(dead.front());
}

std::optional<int> PeerWatch::stopped_rank() const {
  for (const auto& peer : watched_) {
    std::string text;
    std::getline(std::ifstream(fmt::format("/proc/{}/stat", peer.pid)), text);
    // "1234 (name) T ...", where the name may hold anything.
    const size_t end = text.rfind(") ");
    if (end != std::string::npos && end + 2 < text.size() && (text[end + 2] == 'T' || text[end + 2] == 't'))
      return peer.rank;
  }
  return std::nullopt;
}

}  // namespace sherd
