// Says what it was that a process wrote to, when it dies of writing to memory that it may only read.
//
// Writes by way of torch's operators are stopped before they happen; one past torch (a raw pointer, another library)
// meets the read-only mapping and ends the process. While a guard lives, SIGSEGV writes one line to the standard error
// first, and then does what it would have done without.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sherd {

struct GuardedRange {
  const std::byte* first;
  int64_t bytes;
  std::string line;  // what to write: `[where] got X, expected Y; try Z`, without a newline
};

class WriteGuard {
 public:
  /// At most 64 guards speak at a time; further ones are silent.
  explicit WriteGuard(std::vector<GuardedRange> ranges);
  ~WriteGuard();
  WriteGuard(const WriteGuard&) = delete;
  WriteGuard& operator=(const WriteGuard&) = delete;

  /// The range that holds the address, or null. Async-signal-safe.
  const GuardedRange* find(const void* address) const noexcept;

 private:
  std::vector<GuardedRange> ranges_;
};

}  // namespace sherd
