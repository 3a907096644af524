// The store of any transport: each rank has buffers of its own, and collectives fill them. The textbook behaviour of
// every strategy; prefetched gathers and reductions overlap compute where the transport works in the background.
#pragma once

#include <deque>
#include <vector>

#include "sherd/memory/buffer.h"
#include "sherd/shard/gradient_exchange.h"
#include "sherd/shard/store.h"

namespace sherd {

class PrivateStore : public Store {
 public:
  PrivateStore(StoreTransports transports, Ledger& ledger, StorePlan plan);

  void begin_unshard(size_t g) override;
  at::Tensor unshard(size_t g) override;
  void reshard(size_t g) override;
  const std::vector<int>& owned() const override { return owned_; }
  at::Tensor rows(size_t g, size_t parameter, int owner) override;
  void publish(size_t g) override;

  int64_t slot_blocked_by(size_t g) const override;
  at::Tensor open_slot(size_t g) override;
  void contribute(size_t g) override;
  bool reduce(size_t g, Round round, Patience patience) override;
  int index() const override { return transport_.rank(); }
  void finish_round() override;
  at::Tensor gradient(size_t g) override { return groups_[g].gradient; }
  void set_roles(const std::vector<Roles>& roles) override;
  void renew_gradient(size_t g) override;
  void set_divisor(size_t g, double divisor) override { groups_[g].divisor = divisor; }
  void set_reach(Reach reach) override { reach_ = reach; }
  bool keeps_back(size_t g) const override { return groups_[g].kept_back.tensor().defined(); }
  void drop() noexcept override;
  void drop_unshard(size_t g) noexcept override;
  void restart() override { barrier(transport_); }

 private:
  enum class Whole { stale, in_flight, ready };

  struct Group {
    // Parameters. Spread over the ranks: `shard` stays, `loan` is the whole buffer while unsharded. Else:
    // `whole_buffer` stays.
    Whole whole = Whole::stale;
    Buffer shard, whole_buffer;
    BufferPool::Loan loan, send, received;
    Pending gather;
    // Gradients.
    Buffer dedicated, gradient_buffer;
    Booking dedicated_rest;  // of the dedicated slot's bytes, those that are not gradients
    BufferPool::Loan slot;
    GradientExchange exchange;
    BufferPool::Loan sent;       // our summed piece, on its way to all ranks
    BufferPool::Loan kept_back;  // sums along the shard axis that the replicas have yet to add up
    Pending spread;
    bool outstanding = false;  // contributed, not yet reduced
    at::Tensor gradient;
    double divisor = 1;
  };

  bool keeps_whole(size_t g) const { return plan_.groups[g].parameters == Spread::whole || transport_.size() == 1; }
  bool replicates_optimizer() const { return owned_.size() > 1; }
  const GroupLayout& layout(size_t g) const { return plan_.groups[g].layout; }
  const GroupLayout& gradients(size_t g) const { return plan_.groups[g].gradients; }
  void make_gradient(size_t g);
  at::Tensor slot_tensor(size_t g) const;
  void keep_written_rows(size_t g);
  void finish_oldest_spreading();
  void sum_over_ranks(size_t g, const at::Tensor& all, const at::Tensor& mine, Round round);

  Ledger& ledger_;
  StoreTransports transports_;
  Transport& transport_;  // transports_.shard
  StorePlan plan_;
  Reach reach_ = Reach::all;
  std::vector<int> owned_;
  BufferPool unsharded_, communication_;
  std::vector<Group> groups_;
  std::vector<size_t> ring_;      // groups whose pooled slots are outstanding, oldest first
  std::deque<size_t> spreading_;  // groups whose sums travel to all ranks, oldest first
};

}  // namespace sherd
