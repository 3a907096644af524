#include "sherd/memory/write_guard.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>

namespace sherd {
namespace {

constexpr uintptr_t kPage = 4096;

// A signal handler is given nothing but the address: what it looks up has to be static.
std::array<std::atomic<WriteGuard*>, 256> guards;
struct sigaction action_before;

void ask_the_guards(int, siginfo_t* info, void*) {
  const int before = errno;
  const bool ours = info->si_code == SEGV_ACCERR && std::any_of(guards.begin(), guards.end(), [&](const auto& slot) {
                      WriteGuard* guard = slot.load(std::memory_order_acquire);
                      return guard != nullptr && guard->let_write(info->si_addr);
                    });
  errno = before;
  if (!ours) sigaction(SIGSEGV, &action_before, nullptr);  // The write is tried again on return, and meets this.
}

void install_once() {
  [[maybe_unused]] static const int installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = ask_the_guards;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGSEGV, &action, &action_before);
  }();
}

uintptr_t first_page(const GuardedRange& range) { return reinterpret_cast<uintptr_t>(range.first) / kPage; }
uintptr_t last_page(const GuardedRange& range) {
  return (reinterpret_cast<uintptr_t>(range.first) + static_cast<uintptr_t>(range.bytes) - 1) / kPage;
}

bool share_a_page(const GuardedRange& a, const GuardedRange& b) {
  return a.bytes > 0 && b.bytes > 0 && first_page(a) <= last_page(b) && first_page(b) <= last_page(a);
}

}  // namespace

WriteGuard::WriteGuard(std::vector<GuardedRange> ranges)
    : ranges_(std::move(ranges)), written_(std::make_unique<std::atomic<bool>[]>(ranges_.size())) {
  install_once();
  for (auto& slot : guards) {
    WriteGuard* none = nullptr;
    if (slot.compare_exchange_strong(none, this, std::memory_order_release)) return;
  }
}

WriteGuard::~WriteGuard() {
  for (auto& slot : guards) {
    WriteGuard* mine = this;
    if (slot.compare_exchange_strong(mine, nullptr)) return;
  }
}

std::vector<GuardedRange> WriteGuard::take_written() {
  std::vector<GuardedRange> met, near;
  any_ = false;
  for (size_t i = 0; i < ranges_.size(); ++i)
    if (written_[i].exchange(false)) met.push_back(ranges_[i]);
  for (const GuardedRange& range : ranges_)
    if (std::any_of(met.begin(), met.end(), [&](const auto& other) { return share_a_page(range, other); }))
      near.push_back(range);
  return near;
}

bool WriteGuard::let_write(void* address) noexcept {
  const auto* at = static_cast<const std::byte*>(address);
  for (size_t i = 0; i < ranges_.size(); ++i) {
    if (at < ranges_[i].first || at >= ranges_[i].first + ranges_[i].bytes) continue;
    auto* page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) / kPage * kPage);
    if (mprotect(page, kPage, PROT_READ | PROT_WRITE) != 0) return false;
    written_[i] = true;
    any_ = true;
    return true;
  }
  return false;
}

}  // namespace sherd
