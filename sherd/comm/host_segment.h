// The transport of one host: memory that all ranks map, and waits for what peers do there. Waits spin a few
// microseconds, then sleep on a futex in slices of 100 ms, between which they look for an abort, a dead peer and the
// time-out.
//
// [Note: Recovery] The board of the first transport counts recoveries; subgroups have boards of their own for
// exchanges, but abort and recover on that of the first. recover() goes in stages, each a counter per rank:
//   1  all ranks have left their waits; now each drops the descriptors that it has not received
//   2  all have done so; rank 0 settles the recovery by one compare-and-swap, and forgets the abort
//   3  rank 0 has: all go on. Exchanges are counted from recoveries << 32, so none is taken for an interrupted one.
// A rank that gives up in 1 or 2 tries the same compare-and-swap with "failed": all ranks end alike.
//
// [Note: Rings] A rank that sleeps says for whom, and after which event of that peer it still had to wait. Where this
// leads from peer to peer back to the rank itself, and none has an event that the one before has not seen, nobody in
// the ring will ever wake: they say so soon, and which calls they are in.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sherd/comm/peer_watch.h"
#include "sherd/comm/rendezvous.h"
#include "sherd/comm/shared_memory.h"
#include "sherd/comm/transport.h"
#include "sherd/comm/whereabouts.h"

namespace sherd {

class HostSegment : public Transport, public std::enable_shared_from_this<HostSegment> {
 public:
  /// Connects ranks that are on one host; null (on all ranks) when a descriptor cannot reach some of them. Collective.
  static std::shared_ptr<HostSegment> connect(const World& world);
  ~HostSegment() override;

  std::string_view name() const override { return "host"; }
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) override;
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) override;
  void drop_staging() override;
  void finish() noexcept override;
  std::optional<std::string> heard() override;

  /// A segment that `creator` makes and all ranks hold. Collective: same order and size everywhere.
  SharedMemory share(int64_t bytes, int creator);

  /// Waits until `ready` holds, which only `peer` can bring about. `what` names it in errors. Throws FaultError.
  void wait_for(int peer, const std::function<bool()>& ready, std::string_view what);
  /// Wakes the peers that wait for this rank: call after advancing a counter.
  void notify();

  /// For the memory of one host among several: waits hear of aborts in `whole` too, which outlives this, and errors
  /// name rank r as numbers[r]. Before anything else is done with it.
  void listen_to(Control& whole, std::vector<int> numbers);
  /// A peer elsewhere has given up: waits here throw `text`, if no abort has come before.
  void pass_on(std::string_view text) noexcept;

 private:
  struct Board;
  void run_exchange(const Part& mine, std::span<std::byte> all) override;
  HostSegment* shared() override { return this; }
  std::shared_ptr<Transport> make_subgroup(const std::vector<int>& ranks, int place) override;
  void tell_abort(std::string_view cause) noexcept override;
  void run_recovery() override;
  void show_call() noexcept override;
  enum class Heed { aborts, only_dead };  // what ends a wait beside its time-out
  HostSegment(const World& world, std::vector<UniqueFd> sockets, SharedMemory board);
  HostSegment& first() { return first_ ? *first_ : *this; }
  const HostSegment& first() const { return first_ ? *first_ : *this; }
  Board& shared_board() { return *first().board_; }
  void wait(int peer, const std::function<bool()>& ready, std::string_view what, Heed heed);
  void check_peers(std::optional<int> dead, std::string_view what, Heed heed);
  void hear_outside();
  int in_first(int rank) const { return members_.empty() ? rank : members_[static_cast<size_t>(rank)]; }
  int number_of(int rank) const;
  const Whereabouts& whereabouts(int rank) const;
  std::string who_is_where(int peer) const;
  std::optional<int> dead_rank() const;
  bool may_be_alone() const;
  std::vector<int> ring_of_waits(uint64_t& sleeps) const;
  void compare_purposes(uint64_t turn);
  [[noreturn]] void give_up(const std::string& cause);
  void finish_stage(uint64_t stage, int first_rank, int last_rank);
  void drop_unreceived();
  SharedMemory receive_segment(int peer);
  void forget_interrupted();
  void exchange_chunk(std::span<const std::byte> mine, std::span<std::byte> all, size_t stride);
  const std::byte* stage(const at::Tensor& mine);

  World world_;
  std::shared_ptr<HostSegment> first_;   // whose subgroup this is; null in the first itself
  std::vector<int> members_;             // of a subgroup: what its ranks are in the first
  std::vector<HostSegment*> subgroups_;  // of the first
  Control* outside_ = nullptr;           // of the first: who else aborts
  std::vector<int> numbers_;             // of the first: of its ranks, in errors; empty: as they are
  std::vector<UniqueFd> sockets_;        // rank 0: one a peer; others: rank 0 only
  SharedMemory board_memory_;
  Mapping board_mapping_;
  Board* board_ = nullptr;
  PeerWatch watch_;
  uint64_t recoveries_ = 0;  // that this transport knows of
  uint64_t exchanges_ = 0;

  SharedMemory staging_memory_;  // of all_gather and all_to_all
  Mapping staging_;
};

}  // namespace sherd
