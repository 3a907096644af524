#include "sherd/memory/write_guard.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>

namespace sherd {
namespace {

// A signal handler is given nothing but the address: what it looks up has to be static, and is only read in it.
std::array<std::atomic<const WriteGuard*>, 64> guards;
struct sigaction action_before;

void name_the_range(int, siginfo_t* info, void*) {
  for (const auto& slot : guards) {
    const WriteGuard* guard = slot.load(std::memory_order_acquire);
    const GuardedRange* range = guard == nullptr ? nullptr : guard->find(info->si_addr);
    if (range == nullptr) continue;
    // There is nobody to tell that this has failed.
    [[maybe_unused]] ssize_t written = write(STDERR_FILENO, range->line.data(), range->line.size());
    written = write(STDERR_FILENO, "\n", 1);
    break;
  }
  sigaction(SIGSEGV, &action_before, nullptr);  // The write is tried again on return, and meets this.
}

void install_once() {
  [[maybe_unused]] static const int installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = name_the_range;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGSEGV, &action, &action_before);
  }();
}

}  // namespace

WriteGuard::WriteGuard(std::vector<GuardedRange> ranges) : ranges_(std::move(ranges)) {
  install_once();
  for (auto& slot : guards) {
    const WriteGuard* none = nullptr;
    if (slot.compare_exchange_strong(none, this, std::memory_order_release)) return;
  }
}

WriteGuard::~WriteGuard() {
  for (auto& slot : guards) {
    const WriteGuard* mine = this;
    if (slot.compare_exchange_strong(mine, nullptr)) return;
  }
}

const GuardedRange* WriteGuard::find(const void* address) const noexcept {
  const auto* at = static_cast<const std::byte*>(address);
  for (const GuardedRange& range : ranges_)
    if (at >= range.first && at < range.first + range.bytes) return &range;
  return nullptr;
}

}  // namespace sherd
