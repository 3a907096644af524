#include "sherd/comm/host_segment.h"

#include <fmt/ranges.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include <ATen/core/grad_mode.h>

#include "sherd/base/error.h"
#include "sherd/base/fnv.h"
#include "sherd/base/log.h"
#include "sherd/comm/local_socket.h"
#include "sherd/comm/whereabouts.h"

namespace sherd {
namespace {

constexpr const char* kWhere = "host";
constexpr int kMaxRanks = 256;
constexpr int64_t kMailbox = 1024;  // doubles a rank and exchange
constexpr int kSpins = 2000;
constexpr std::chrono::milliseconds kRing{300}, kLate{1000};
constexpr const char* kRecoveryFailed = "a rank gave up waiting for the others to recover";

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, timeout, nullptr, 0);
}

std::string random_name() {
  std::random_device random;
  return fmt::format("sherd-{:08x}{:08x}{:08x}", random(), random(), random());
}

// A tensor without elements may have no address, which memcpy does not take.
void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

struct HostSegment::Control {
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
  double mailbox[kMaxRanks][2][kMailbox];  // only those of ranks that there are

  static int64_t bytes_for(int ranks) {
    return static_cast<int64_t>(offsetof(Control, mailbox) + static_cast<size_t>(ranks) * sizeof(mailbox[0]));
  }
};

std::shared_ptr<HostSegment> HostSegment::connect(const World& all) {
  if (all.size > kMaxRanks) return nullptr;
  const World world = with_fresh_store(all, "host");
  auto& store = *world.store;
  UniqueFd listener, to_root;
  if (world.rank == 0) {
    const std::string name = random_name();
    listener = listen_abstract(name);
    store.set("name", name);
  } else {
    to_root = connect_abstract(text_of(store.get("name")));
  }
  store.set(fmt::format("reached/{}", world.rank), world.rank == 0 || to_root ? "1" : "0");
  for (int r = 0; r < world.size; ++r)
    if (text_of(store.get(fmt::format("reached/{}", r))) != "1") return nullptr;

  std::vector<UniqueFd> sockets(static_cast<size_t>(world.size));
  if (world.rank != 0) {
    set_receive_timeout(to_root.get(), world.timeout);
    send_number(to_root.get(), world.rank, "its greeting to rank 0");
    int64_t bytes = 0;
    UniqueFd fd = receive_fd(to_root.get(), bytes);
    sockets[0] = std::move(to_root);
    return std::shared_ptr<HostSegment>(
        new HostSegment(world, std::move(sockets), SharedMemory::adopt(std::move(fd), bytes)));
  }
  SharedMemory control = SharedMemory::create(Control::bytes_for(world.size));
  for (int connected = 1; connected < world.size; ++connected) {
    UniqueFd peer = accept_same_user(listener.get(), world.timeout);
    set_receive_timeout(peer.get(), world.timeout);
    const int64_t r = receive_number(peer.get(), "its greeting");
    if (r < 1 || r >= world.size) fault(kWhere, "a peer greets as rank {} of {}", r, world.size);
    send_fd(peer.get(), control.fd(), control.bytes());
    sockets[static_cast<size_t>(r)] = std::move(peer);
  }
  return std::shared_ptr<HostSegment>(new HostSegment(world, std::move(sockets), std::move(control)));
}

HostSegment::HostSegment(const World& world, std::vector<UniqueFd> sockets, SharedMemory control)
    : Transport(world.rank, world.size),
      world_(world),
      sockets_(std::move(sockets)),
      control_memory_(std::move(control)),
      control_mapping_(control_memory_.map_writable(0, control_memory_.bytes())),
      control_(reinterpret_cast<Control*>(control_mapping_.data())) {
  // A fresh segment is zero: every counter starts at 0. Peers learn each other's process numbers in the first exchange.
  const double pid = getpid();
  std::vector<pid_t> pids;
  for (const double value : exchange({&pid, 1})) pids.push_back(static_cast<pid_t>(value));
  watch_ = PeerWatch(pids);
}

HostSegment::~HostSegment() {
  if (first_) std::erase(first_->subgroups_, this);
  finish();
}

void HostSegment::finish() noexcept {
  if (first_) return;
  control_->ranks[rank()].where.end = Whereabouts::End::finished;
  notify();
}

void HostSegment::show_call() noexcept { first().control_->ranks[first().rank()].where.set_call(call()); }

// Subgroups number their ranks in their own way, and name nobody.
std::string HostSegment::who_is_where(int peer) const {
  if (first_ || (call().empty() && control_->ranks[peer].where.call().empty())) return "";
  return fmt::format("rank {} {}, rank {} {}; ", rank(), where_it_is(control_->ranks[rank()].where), peer,
                     where_it_is(control_->ranks[peer].where));
}

// Whether this is a call that programs make on one rank by mistake: one by its own name, or an evaluation.
bool HostSegment::may_be_alone() const {
  return !purpose().empty() && (purpose() == call() || !at::GradMode::is_enabled());
}

// Of those that have not finished.
std::optional<int> HostSegment::dead_rank() const {
  for (const int r : watch_.dead_ranks())
    if (control_->ranks[r].where.end.load() == Whereabouts::End::none) return r;
  return std::nullopt;
}

// See [Note: Rings]. Empty where there is none; `sleeps` tells one from the next.
std::vector<int> HostSegment::ring_of_waits(uint64_t& sleeps) const {
  std::vector<int> ring;
  sleeps = 0;
  for (int r = rank(); static_cast<int>(ring.size()) < size();) {
    const Whereabouts& where = control_->ranks[r].where;
    const int peer = where.waits_for.load() - 1;
    if (peer < 0 || where.saw.load() != control_->ranks[peer].event.load()) return {};
    ring.push_back(r);
    sleeps += where.sleeps.load();
    if (peer == rank()) return ring;
    r = peer;
  }
  return {};
}

void HostSegment::notify() {
  Control::RankLine& line = control_->ranks[rank()];
  line.event.fetch_add(1, std::memory_order_seq_cst);
  if (line.waiters.load(std::memory_order_seq_cst) > 0) futex(&line.event, FUTEX_WAKE, INT32_MAX, nullptr);
}

void HostSegment::give_up(const std::string& cause) {
  abort(cause);
  fault(kWhere, "{}", cause);
}

void HostSegment::check_peers(std::optional<int> dead, std::string_view what, Heed heed) {
  const Control& control = shared_control();
  if (heed == Heed::aborts && control.aborted.load(std::memory_order_acquire) == 2) {
    heard_abort();
    throw FaultError(control.cause);
  }
  if (heed == Heed::only_dead && control.recovery.load() % 2 == 1) fault(kWhere, "{}", kRecoveryFailed);
  if (dead) give_up(fmt::format("rank {} died; rank {} was waiting for {}", *dead, first().rank(), what));
}

void HostSegment::wait_for(int peer, const std::function<bool()>& ready, std::string_view what) {
  wait(peer, ready, what, Heed::aborts);
}

void HostSegment::wait(int peer, const std::function<bool()>& ready, std::string_view what, Heed heed) {
  for (int i = 0; i < kSpins; ++i) {
    if (ready()) return;
    _mm_pause();
  }
  Control::RankLine& line = control_->ranks[peer];
  Whereabouts& mine = control_->ranks[rank()].where;
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
    const bool finished = line.where.end.load() == Whereabouts::End::finished;
    if ((dead || finished) && ready()) return;  // It ended after its part was done, and what we wait for came before.
    check_peers(dead, what, heed);
    if (finished)
      give_up(fmt::format("rank {} has finished; rank {} {}, and waits for {} of it; try the same calls on all ranks",
                          peer, rank(), where_it_is(mine), what));
    const auto now = std::chrono::steady_clock::now();
    uint64_t sleeps = 0;
    const std::vector<int> ring = ring_of_waits(sleeps);
    if (ring.empty() || sleeps != std::exchange(ring_before, sleeps)) ring_since = now;
    if (now - ring_since > kRing) {
      std::string everybody;
      for (const int r : ring) everybody += fmt::format("rank {} {}, ", r, where_it_is(control_->ranks[r].where));
      give_up(fmt::format("ranks wait for each other: {}which waits for {}; try the same calls on all ranks", everybody,
                          what));
    }
    if (now - start > kLate && !std::exchange(told, true) && may_be_alone())
      log("rank {} has waited 1 s for rank {}: {}all ranks are to make this call", rank(), peer, who_is_where(peer));
    if (now <= start + world_.timeout) continue;
    const auto stopped = first().watch_.stopped_rank();
    give_up(fmt::format("rank {} waited {} s for rank {}: {}; {}{}", rank(),
                        static_cast<double>(world_.timeout.count()) / 1000, peer, what, who_is_where(peer),
                        stopped ? fmt::format("rank {} is stopped; try to let it go on (SIGCONT) sooner", *stopped)
                                : fmt::format("try a longer {} if the rank is only slow", world_.timeout_argument)));
  }
}

void HostSegment::tell_abort(std::string_view cause) noexcept {
  if (first_) return first_->tell_abort(cause);
  uint32_t none = 0;
  if (!control_->aborted.compare_exchange_strong(none, 1)) return;  // The first cause stays.
  std::string text;
  try {
    text = fmt::format("[{}] rank {} gave up: {}", kWhere, rank(), cause);
  } catch (...) {
    text = "out of memory";
  }
  const size_t length = std::min(text.size(), sizeof(control_->cause) - 1);
  std::memcpy(control_->cause, text.data(), length);
  control_->cause[length] = 0;
  control_->aborted.store(2, std::memory_order_release);
  for (int r = 0; r < size(); ++r) {
    control_->ranks[r].event.fetch_add(1);
    futex(&control_->ranks[r].event, FUTEX_WAKE, INT32_MAX, nullptr);
  }
}

void HostSegment::finish_stage(uint64_t stage, int first_rank, int last_rank) {
  control_->ranks[rank()].recovering.store(stage, std::memory_order_release);
  notify();
  for (int r = first_rank; r <= last_rank; ++r) {
    const auto& line = control_->ranks[r];
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
    if (control_->recovery.compare_exchange_strong(expected, before + 1) || expected != settled) throw;
    // All had come, if late: rank 0 has settled it.
  }
  if (rank() == 0) {
    uint64_t expected = before;
    if (!control_->recovery.compare_exchange_strong(expected, settled)) fault(kWhere, "{}", kRecoveryFailed);
    control_->aborted.store(0, std::memory_order_release);
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

void HostSegment::drop_staging() {
  staging_ = Mapping();
  staging_memory_ = SharedMemory();
}

std::shared_ptr<Transport> HostSegment::subgroup(const std::vector<int>& ranks) {
  World world = world_;
  world.rank = place_among(ranks);
  world.size = static_cast<int>(ranks.size());
  if (world.size == 1) return solo_transport();
  world = with_fresh_store(world, fmt::format("group/{}", fmt::join(ranks, ",")));
  auto group = connect(world);
  if (!group) fault(kWhere, "ranks {} of one host cannot reach each other any more", fmt::join(ranks, ","));
  group->first_ = first().shared_from_this();
  adopt(*group);
  group->watch_ = PeerWatch();  // the first's watches them all
  first().subgroups_.push_back(group.get());
  return group;
}

std::vector<double> HostSegment::exchange_chunk(std::span<const double> values) {
  forget_interrupted();
  check_peers(std::nullopt, "an exchange", Heed::aborts);
  // Two mailboxes suffice: a rank writes exchange k+2 only after all have published k+1, and so have read k.
  const uint64_t turn = ++exchanges_;
  std::copy(values.begin(), values.end(), control_->mailbox[rank()][turn % 2]);
  Fnv meeting;
  meeting.add(purpose());
  meeting.add(values.size());
  control_->ranks[rank()].where.meeting[turn % 2].store(meeting.value(), std::memory_order_relaxed);
  control_->ranks[rank()].exchanged.store(turn, std::memory_order_release);
  notify();
  std::vector<double> result;
  result.reserve(values.size() * static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    const auto& line = control_->ranks[r];
    wait_for(
        r, [&] { return line.exchanged.load(std::memory_order_acquire) >= turn; }, "an exchange");
    const double* box = control_->mailbox[r][turn % 2];
    result.insert(result.end(), box, box + values.size());
  }
  compare_purposes(turn);
  return result;
}

// All ranks compare, and all find somebody who differs.
void HostSegment::compare_purposes(uint64_t turn) {
  const auto meeting = [&](int r) { return control_->ranks[r].where.meeting[turn % 2].load(); };
  for (int r = 0; r < size(); ++r) {
    if (meeting(r) == meeting(rank())) continue;
    check_peers(std::nullopt, "an exchange", Heed::aborts);  // the first who has noticed still saw the others there
    const std::string places = who_is_where(r);
    give_up(
        fmt::format("rank {} meets rank {} in an exchange that is not for the same{}{}; {}try the same calls in the "
                    "same order on all ranks",
                    rank(), r, purpose().empty() ? "" : " as here: ", purpose(), places));
  }
}

std::vector<double> HostSegment::exchange(std::span<const double> values) {
  if (values.size() <= static_cast<size_t>(kMailbox)) return exchange_chunk(values);
  std::vector<double> result(values.size() * static_cast<size_t>(size()));
  for (size_t first = 0; first < values.size(); first += kMailbox) {
    const size_t count = std::min<size_t>(kMailbox, values.size() - first);
    const auto part = exchange_chunk(values.subspan(first, count));
    for (size_t r = 0; r < static_cast<size_t>(size()); ++r)
      std::copy_n(part.begin() + static_cast<int64_t>(r * count), count,
                  result.begin() + static_cast<int64_t>(r * values.size() + first));
  }
  return result;
}

SharedMemory HostSegment::receive_segment(int peer) {
  const int socket = sockets_[static_cast<size_t>(peer)].get();
  const auto arrived = [socket] {
    pollfd polled = {socket, POLLIN, 0};
    return poll(&polled, 1, 0) == 1;
  };
  wait_for(peer, arrived, "a shared segment");
  try {
    int64_t bytes = 0;
    UniqueFd fd = receive_fd(socket, bytes);
    return SharedMemory::adopt(std::move(fd), bytes);
  } catch (const FaultError&) {
    check_peers(std::nullopt, "a shared segment", Heed::aborts);  // why the peer has gone, where it said so
    throw;
  }
}

SharedMemory HostSegment::share(int64_t bytes, int creator) {
  // Descriptors travel over rank 0, to whom every rank has a socket.
  SharedMemory memory;
  if (rank() == creator) memory = SharedMemory::create(bytes);
  if (rank() == 0) {
    if (creator != 0) memory = receive_segment(creator);
    for (int r = 1; r < size(); ++r)
      if (r != creator) send_fd(sockets_[static_cast<size_t>(r)].get(), memory.fd(), memory.bytes());
    notify();
  } else if (rank() == creator) {
    send_fd(sockets_[0].get(), memory.fd(), memory.bytes());
    notify();
  } else {
    memory = receive_segment(0);
  }
  return memory;
}

// Every rank's bytes side by side, for all to read until the next barrier.
const std::byte* HostSegment::stage(const at::Tensor& mine) {
  forget_interrupted();
  const auto bytes = static_cast<int64_t>(mine.nbytes());
  if (staging_.bytes() < bytes * size()) {
    barrier(*this);
    staging_memory_ = share(bytes * size(), 0);
    staging_ = staging_memory_.map_writable(0, bytes * size());
  }
  copy_bytes(staging_.data() + bytes * rank(), mine.const_data_ptr(), bytes);
  bytes_sent_ += bytes;
  barrier(*this);
  return staging_.data();
}

Pending HostSegment::all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view) {
  copy_bytes(whole.mutable_data_ptr(), stage(shard), static_cast<int64_t>(shard.nbytes()) * size());
  barrier(*this);
  return {};
}

Pending HostSegment::all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view) {
  const int64_t piece = static_cast<int64_t>(send.nbytes()) / size();
  const std::byte* all = stage(send);
  for (int r = 0; r < size(); ++r)
    copy_bytes(static_cast<std::byte*>(received.mutable_data_ptr()) + r * piece, all + (r * size() + rank()) * piece,
               piece);
  barrier(*this);
  return {};
}

}  // namespace sherd
