// How ranks of one host wait for each other: sleeping and waking, who waits for whom, aborts and recoveries.
#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include <ATen/core/grad_mode.h>

#include "sherd/base/error.h"
#include "sherd/base/log.h"
#include "sherd/comm/host_board.h"
#include "sherd/comm/local_socket.h"

namespace sherd {
namespace {

constexpr int kSpins = 2000;
constexpr std::chrono::milliseconds kRing{300}, kLate{1000};
constexpr const char* kRecoveryFailed = "a rank gave up waiting for the others to recover";

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, timeout, nullptr, 0);
}

}  // namespace

void HostSegment::show_call() noexcept { first().board_->ranks[first().rank()].where.set_call(call()); }

std::optional<std::string> HostSegment::heard() {
  const Board& board = shared_board();
  if (board.aborted.load(std::memory_order_acquire) != 2) return std::nullopt;
  return board.cause;
}

void HostSegment::listen_to(Control& whole, std::vector<int> numbers) {
  SHERD_CHECK(first_ == nullptr && subgroups_.empty());
  outside_ = &whole;
  numbers_ = std::move(numbers);
}

void HostSegment::hear_outside() {
  if (outside_ == nullptr || heard()) return;
  if (const auto cause = outside_->heard()) pass_on(*cause);
}

int HostSegment::number_of(int rank) const {
  const std::vector<int>& numbers = first().numbers_;
  return numbers.empty() ? in_first(rank) : numbers[static_cast<size_t>(in_first(rank))];
}

// Calls and ends are told on the first's board.
const Whereabouts& HostSegment::whereabouts(int rank) const { return first().board_->ranks[in_first(rank)].where; }

std::string HostSegment::who_is_where(int peer) const {
  if (call().empty() && whereabouts(peer).call().empty()) return "";
  return fmt::format("rank {} {}, rank {} {}; ", number_of(rank()), where_it_is(whereabouts(rank())), number_of(peer),
                     where_it_is(whereabouts(peer)));
}

// Whether this is a call that programs make on one rank by mistake: one by its own name, or an evaluation.
bool HostSegment::may_be_alone() const {
  return !purpose().empty() && (purpose() == call() || !at::GradMode::is_enabled());
}

// Of those that have not finished.
std::optional<int> HostSegment::dead_rank() const {
  for (const int r : watch_.dead_ranks())
    if (board_->ranks[r].where.end.load() == Whereabouts::End::none) return r;
  return std::nullopt;
}

// See [Note: Rings]. Empty where there is none; `sleeps` tells one from the next.
std::vector<int> HostSegment::ring_of_waits(uint64_t& sleeps) const {
  std::vector<int> ring;
  sleeps = 0;
  for (int r = rank(); static_cast<int>(ring.size()) < size();) {
    const Whereabouts& where = board_->ranks[r].where;
    const int peer = where.waits_for.load() - 1;
    if (peer < 0 || where.saw.load() != board_->ranks[peer].event.load()) return {};
    ring.push_back(r);
    sleeps += where.sleeps.load();
    if (peer == rank()) return ring;
    r = peer;
  }
  return {};
}

void HostSegment::notify() {
  Board::RankLine& line = board_->ranks[rank()];
  line.event.fetch_add(1, std::memory_order_seq_cst);
  if (line.waiters.load(std::memory_order_seq_cst) > 0) futex(&line.event, FUTEX_WAKE, INT32_MAX, nullptr);
}

void HostSegment::give_up(const std::string& cause) {
  abort(cause);
  fault(kHostTransport, "{}", cause);
}

void HostSegment::check_peers(std::optional<int> dead, std::string_view what, Heed heed) {
  const Board& board = shared_board();
  if (heed == Heed::aborts && board.aborted.load(std::memory_order_acquire) == 2) {
    heard_abort();
    throw FaultError(board.cause);
  }
  if (heed == Heed::only_dead && board.recovery.load() % 2 == 1) fault(kHostTransport, "{}", kRecoveryFailed);
  if (dead)
    give_up(fmt::format("rank {} died; rank {} was waiting for {}", first().number_of(*dead), number_of(rank()), what));
}

void HostSegment::wait_for(int peer, const std::function<bool()>& ready, std::string_view what) {
  wait(peer, ready, what, Heed::aborts);
}

void HostSegment::wait(int peer, const std::function<bool()>& ready, std::string_view what, Heed heed) {
  for (int i = 0; i < kSpins; ++i) {
    if (ready()) return;
    _mm_pause();
  }
  Board::RankLine& line = board_->ranks[peer];
  Whereabouts& mine = board_->ranks[rank()].where;
  mine.sleeps.fetch_add(1);
  const auto wake = [](Whereabouts* where) { where->waits_for.store(0); };
  const std::unique_ptr<Whereabouts, decltype(wake)> awake(&mine, wake);
  const auto start = std::chrono::steady_clock::now();
  const timespec slice = {0, 100'000'000};
  uint64_t ring_before = 0;
  auto ring_since = start;
  bool told = false;
  while (true) {
    const uint32_t event = line.event.load(std::memory_order_seq_cst);
    if (ready()) return;
    mine.saw.store(event);
    if (heed == Heed::aborts) mine.waits_for.store(peer + 1);
    line.waiters.fetch_add(1, std::memory_order_seq_cst);
    futex(&line.event, FUTEX_WAIT, event, &slice);
    line.waiters.fetch_sub(1, std::memory_order_seq_cst);
    if (ready()) return;
    const std::optional<int> dead = first().dead_rank();
    const bool finished = whereabouts(peer).end.load() == Whereabouts::End::finished;
    if ((dead || finished) && ready()) return;  // It ended after its part was done, and what we wait for came before.
    if (heed == Heed::aborts) first().hear_outside();
    check_peers(dead, what, heed);
    if (finished)
      give_up(fmt::format("rank {} has finished; rank {} {}, and waits for {} of it; try the same calls on all ranks",
                          number_of(peer), number_of(rank()), where_it_is(whereabouts(rank())), what));
    const auto now = std::chrono::steady_clock::now();
    uint64_t sleeps = 0;
    const std::vector<int> ring = ring_of_waits(sleeps);
    if (ring.empty() || sleeps != std::exchange(ring_before, sleeps)) ring_since = now;
    if (now - ring_since > kRing) {
      std::string everybody;
      for (const int r : ring) everybody += fmt::format("rank {} {}, ", number_of(r), where_it_is(whereabouts(r)));
      give_up(fmt::format("ranks wait for each other: {}which waits for {}; try the same calls on all ranks", everybody,
                          what));
    }
    if (now - start > kLate && !std::exchange(told, true) && may_be_alone())
      log("rank {} has waited 1 s for rank {}: {}all ranks are to make this call", number_of(rank()), number_of(peer),
          who_is_where(peer));
    if (now <= start + world_.timeout) continue;
    const auto stopped = first().watch_.stopped_rank();
    give_up(fmt::format(
        "rank {} waited {} s for rank {}: {}; {}{}", number_of(rank()),
        static_cast<double>(world_.timeout.count()) / 1000, number_of(peer), what, who_is_where(peer),
        stopped ? fmt::format("rank {} is stopped; try to let it go on (SIGCONT) sooner", first().number_of(*stopped))
                : fmt::format("try a longer {} if the rank is only slow", world_.timeout_argument)));
  }
}

void HostSegment::tell_abort(std::string_view cause) noexcept {
  if (first_) return first_->tell_abort(cause);
  try {
    pass_on(fmt::format("[{}] rank {} gave up: {}", kHostTransport, number_of(rank()), cause));
  } catch (...) {
    pass_on("out of memory");
  }
}

void HostSegment::pass_on(std::string_view text) noexcept {
  uint32_t none = 0;
  if (!board_->aborted.compare_exchange_strong(none, 1)) return;  // The first cause stays.
  const size_t length = std::min(text.size(), sizeof(board_->cause) - 1);
  std::memcpy(board_->cause, text.data(), length);
  board_->cause[length] = 0;
  board_->aborted.store(2, std::memory_order_release);
  for (int r = 0; r < size(); ++r) {
    board_->ranks[r].event.fetch_add(1);
    futex(&board_->ranks[r].event, FUTEX_WAKE, INT32_MAX, nullptr);
  }
}

void HostSegment::finish_stage(uint64_t stage, int first_rank, int last_rank) {
  board_->ranks[rank()].recovering.store(stage, std::memory_order_release);
  notify();
  for (int r = first_rank; r <= last_rank; ++r) {
    const auto& line = board_->ranks[r];
    wait(
        r, [&] { return line.recovering.load(std::memory_order_acquire) >= stage; }, "its recovery", Heed::only_dead);
  }
}

void HostSegment::run_recovery() {
  if (first_) return first_->run_recovery();
  const uint64_t before = 2 * recoveries_, settled = before + 2, stage = 3 * recoveries_;
  try {
    finish_stage(stage + 1, 0, size() - 1);
    drop_unreceived();
    finish_stage(stage + 2, 0, size() - 1);
  } catch (const FaultError&) {
    uint64_t expected = before;
    if (board_->recovery.compare_exchange_strong(expected, before + 1) || expected != settled) throw;
    // All had come, if late: rank 0 has settled it.
  }
  if (rank() == 0) {
    uint64_t expected = before;
    if (!board_->recovery.compare_exchange_strong(expected, settled)) fault(kHostTransport, "{}", kRecoveryFailed);
    board_->aborted.store(0, std::memory_order_release);
  }
  ++recoveries_;
  finish_stage(stage + 3, 0, 0);
  forget_interrupted();
}

void HostSegment::drop_unreceived() {
  for (const UniqueFd& socket : sockets_)
    if (socket) drop_descriptors(socket.get());
  for (HostSegment* subgroup : subgroups_) subgroup->drop_unreceived();
}

// What an abort has interrupted is not taken up again. A subgroup comes here with its first call after the recovery.
void HostSegment::forget_interrupted() {
  const uint64_t recoveries = first().recoveries_;
  if (exchanges_ >> 32 == recoveries) return;
  recoveries_ = recoveries;
  exchanges_ = recoveries << 32;
  drop_staging();
}

}  // namespace sherd
