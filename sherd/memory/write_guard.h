// Notices writes to memory that a process may only read, and lets them happen elsewhere.
//
// Writes by way of torch's operators can be stopped before they happen; one past torch (a raw pointer, compiled code,
// another library) meets the read-only mapping. While a guard lives, SIGSEGV for such an address gives the process a
// copy of that page for its own (the mapping is private: copy on write), and the write is done there. Whoever owns the
// guard asks it, says so, and maps the pages anew.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sherd {

/// Memory that is mapped private and read-only.
struct GuardedRange {
  std::byte* first;
  int64_t bytes;
  std::string name;
};

class WriteGuard {
 public:
  /// At most 256 guards work at a time; beyond that a write ends the process, as it would without a guard.
  explicit WriteGuard(std::vector<GuardedRange> ranges);
  ~WriteGuard();
  WriteGuard(const WriteGuard&) = delete;
  WriteGuard& operator=(const WriteGuard&) = delete;

  /// Whether there was a write since the last take_written(). Costs a load.
  bool written() const noexcept { return any_.load(std::memory_order_relaxed); }
  /// The ranges that may have been written to since the last call: those that were met, and others that share a page
  /// with one. Pages that were written to stay copies, and further writes to them unnoticed, until they are mapped
  /// anew.
  std::vector<GuardedRange> take_written();

  /// Makes the page of `address` writable if it is one of ours, and notes it. Async-signal-safe.
  bool let_write(void* address) noexcept;

 private:
  std::vector<GuardedRange> ranges_;
  std::unique_ptr<std::atomic<bool>[]> written_;  // by range
  std::atomic<bool> any_ = false;
};

}  // namespace sherd
