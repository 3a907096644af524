// What a rank is doing, in memory that its peers read: for errors that say who is where.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace sherd {

/// Of one rank, written by it alone. Zero bytes are a rank of which nothing is known.
struct Whereabouts {
  enum class End : uint32_t { none, finished };

  std::array<std::atomic<uint64_t>, 15> words;  // the call that it is in; cut, and ended by a zero
  std::atomic<uint64_t> meeting[2];             // a hash of what its last two exchanges are for
  std::atomic<uint64_t> sleeps;                 // how often it has begun to sleep in a wait
  std::atomic<int32_t> waits_for;               // the peer that it sleeps for, + 1; 0: it does not
  std::atomic<uint32_t> saw;                    // the peer's last event after which it was not ready
  std::atomic<End> end;

  void set_call(std::string_view call);
  /// As it was a moment ago: "the forward of unit 'a'", "" outside of calls.
  std::string call() const;
};

/// "is in the forward of unit 'a'", "is in none of sherd's calls", "has finished".
std::string where_it_is(const Whereabouts& rank);

}  // namespace sherd
