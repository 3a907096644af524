// How bytes move between ranks: one small interface, five transports behind it.
//
//   solo      one rank: nothing moves
//   host      ranks of one host: shared memory (see host_segment.h), parameters are never copied
//   threads   ranks as threads of one process, private buffers (tests)
//   gloo      c10d's Gloo, or any other c10d::Backend that a caller brings
//
// Every call is collective: all ranks make the same calls in the same order. Buffers are 1-D, contiguous, fp32. Where
// data is sent (threads, gloo), ranks that differ in kind, size or `what` of a collective all get a FaultError that
// says who is in what. Every wait has a time-out and notices a dead or aborted peer: it throws FaultError naming the
// rank and the cause. A transport belongs to one thread of one rank.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sherd {

class HostSegment;

/// A started collective. wait() blocks until its result is there; destruction without wait() waits and drops errors.
class [[nodiscard]] Pending {
 public:
  Pending() = default;
  explicit Pending(std::function<void()> wait) : wait_(std::move(wait)) {}
  Pending(Pending&& other) noexcept : wait_(std::exchange(other.wait_, nullptr)) {}
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();
  void wait();

 private:
  std::function<void()> wait_;
};

class Transport {
 public:
  Transport(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual std::string_view name() const = 0;

  /// All ranks' values in rank order: [size * n]. Every rank passes the same n. Also a barrier.
  virtual std::vector<double> exchange(std::span<const double> values) = 0;
  /// The same, for a purpose that all ranks are to have.
  std::vector<double> exchange_for(std::string_view purpose, std::span<const double> values);

  /// The call that this rank is in from here on, for errors of peers that wait for it: "full_state_dict", "" outside.
  /// It must stay valid; returns the one before. A few nanoseconds.
  std::string_view say(std::string_view call);
  std::string_view call() const { return standing_->call; }
  /// The same text for as long as the family lives.
  std::string_view intern(const std::string& text) { return *standing_->texts.insert(text).first; }
  /// This rank will make no more calls: a peer that waits for it hears that it has finished.
  virtual void finish() noexcept {}

  /// whole[r*n, (r+1)*n) = rank r's shard. shard: [n], whole: [size*n]; both must live until wait() returns.
  /// `what` is for errors: "unit 'block3'".
  virtual Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what = {}) = 0;

  /// received[r*n, (r+1)*n) = piece `this rank` of rank r's send. send, received: [size*n], alive until wait() returns.
  virtual Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what = {}) = 0;

  /// Gives back what collectives have kept for the next of them. On all ranks, or on none.
  virtual void drop_staging() {}

  /// The shared memory of this host's ranks, where this transport has it; else null.
  virtual HostSegment* host_segment() { return nullptr; }

  /// A transport among `ranks` of this one: ascending, this rank among them. Collective over them; disjoint groups may
  /// be made at once. It belongs to this one's family: an abort of any member reaches all waits of all members, and
  /// recover() of any is that of all; so it ends on all its ranks or on none. One rank alone gets solo.
  virtual std::shared_ptr<Transport> subgroup(const std::vector<int>& ranks) = 0;

  /// Tells the peers that this rank gives up, and why. Their waits throw with that cause, at the latest in 100 ms.
  /// Where several ranks give up, all hear of the first.
  void abort(std::string_view cause) noexcept;

  /// Makes the family work again after an abort, with nothing under way: what was started before throws in wait().
  /// Collective over the ranks of the whole family, whether or not they have met the abort yet; with nothing aborted it
  /// is a barrier. Throws FaultError on all ranks when one is dead or does not come; then the family is of no more use.
  void recover();

  /// For whatever begins to use the ranks: recover() where this rank has given up or heard that another has, else
  /// nothing.
  void resume();
  /// How often the family has recovered: what was under way before is gone.
  uint64_t recoveries() const { return standing_->recoveries; }

  /// Bytes that this rank has sent to peers through sockets or copies.
  int64_t bytes_sent() const { return bytes_sent_; }

 protected:
  /// This rank's place among `ranks`, which must be as subgroup() wants them.
  int place_among(const std::vector<int>& ranks) const;
  /// Makes `member` one of this transport's family.
  void adopt(Transport& member) const { member.standing_ = standing_; }
  /// A peer has given up.
  void heard_abort() { standing_->interrupted = true; }

  /// What the exchange under way is for.
  std::string_view purpose() const { return purpose_; }
  /// say() was called.
  virtual void show_call() noexcept {}

  int64_t bytes_sent_ = 0;

 private:
  /// What a family shares on one rank.
  struct Standing {
    bool interrupted = false;  // this rank has given up or heard of it, since the last recovery
    uint64_t recoveries = 0;
    std::string_view call;
    std::set<std::string> texts;
  };
  virtual void tell_abort(std::string_view cause) noexcept = 0;
  virtual void run_recovery() = 0;

  std::shared_ptr<Standing> standing_ = std::make_shared<Standing>();
  std::string_view purpose_;
  int rank_;
  int size_;
};

/// Returns when all ranks have come.
void barrier(Transport& transport, std::string_view purpose = {});

/// One rank alone.
std::unique_ptr<Transport> solo_transport();

}  // namespace sherd
