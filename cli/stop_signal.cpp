#include "cli/stop_signal.h"

#include <signal.h>
#include <time.h>

#include <atomic>
#include <cstdint>

namespace sherd {
namespace {

constexpr int64_t kSameRequestMs = 500;

// A signal handler can reach nothing but statics.
std::atomic<int64_t> first_signal_ms{0};
std::atomic<int> requests{0};
std::atomic<SecondSignal> on_second{SecondSignal::ends_process};
static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<SecondSignal>::is_always_lock_free);

int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

void on_signal(int signal) {
  const int64_t now = now_ms();
  int64_t first = 0;
  if (!first_signal_ms.compare_exchange_strong(first, now) && now - first < kSameRequestMs) return;
  if (requests.fetch_add(1) > 0 && on_second.load() == SecondSignal::ends_process) {
    ::signal(signal, SIG_DFL);
    ::raise(signal);
  }
}

}  // namespace

void watch_stop_signals(SecondSignal second) {
  on_second = second;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigset_t both;
  ::sigemptyset(&both);
  for (const int signal : {SIGINT, SIGTERM}) {
    ::sigaction(signal, &action, nullptr);
    ::sigaddset(&both, signal);
  }
  ::pthread_sigmask(SIG_UNBLOCK, &both, nullptr);
}

int stop_requests() { return requests.load(std::memory_order_relaxed); }

}  // namespace sherd
