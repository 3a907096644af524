// The board that the ranks of one host share: each rank's events and counters, an abort, recoveries, mailboxes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "sherd/comm/host_segment.h"
#include "sherd/comm/whereabouts.h"

namespace sherd {

inline constexpr const char* kHostTransport = "host";  // in its errors
inline constexpr int kMaxRanks = 256;
inline constexpr size_t kMailbox = 8192;  // bytes a rank and exchange

struct HostSegment::Board {
  struct alignas(64) RankLine {
    std::atomic<uint32_t> event;    // moves whenever the rank has advanced something
    std::atomic<uint32_t> waiters;  // how many sleep on `event`
    std::atomic<uint64_t> exchanged;
    std::atomic<uint64_t> recovering;  // stages of recoveries
    Whereabouts where;
  };

  alignas(64) std::atomic<uint32_t> aborted;  // 0: no; 1: being written; 2: cause is there
  char cause[1020];
  std::atomic<uint64_t> recovery;  // 2 * how many have succeeded, + 1 once one has failed
  RankLine ranks[kMaxRanks];
  alignas(64) std::byte mailbox[kMaxRanks][2][kMailbox];  // only those of ranks that there are

  static int64_t bytes_for(int ranks) {
    return static_cast<int64_t>(offsetof(Board, mailbox) + static_cast<size_t>(ranks) * sizeof(mailbox[0]));
  }
};

}  // namespace sherd
