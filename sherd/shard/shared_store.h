// The store of one host: one copy of all parameters in shared memory, gradients summed where their makers left them.
#pragma once

#include <optional>
#include <vector>

#include "sherd/comm/group_epochs.h"
#include "sherd/comm/host_segment.h"
#include "sherd/memory/buffer.h"
#include "sherd/memory/write_guard.h"
#include "sherd/shard/store.h"

namespace sherd {

class SharedStore : public Store {
 public:
  SharedStore(HostSegment& host, Ledger& ledger, StorePlan plan);

  void begin_unshard(size_t) override {}
  at::Tensor unshard(size_t g) override;
  void reshard(size_t) override {}
  const std::vector<int>& owned() const override { return owned_; }
  at::Tensor rows(size_t g, size_t parameter, int owner) override;
  void publish(size_t g) override;

  int64_t slot_blocked_by(size_t g) const override;
  at::Tensor open_slot(size_t g) override;
  void contribute(size_t g) override;
  bool reduce(size_t g, Round round, Patience patience) override;
  int index() const override { return host_.rank(); }
  at::Tensor gradient(size_t g) override { return groups_[g].gradient; }
  void check_unwritten() override;
  bool was_written() const override { return guard_->written(); }
  void take_back() override;
  void set_roles(const std::vector<Roles>& roles) override;
  void renew_gradient(size_t g) override;
  void set_divisor(size_t g, double divisor) override { groups_[g].divisor = divisor; }
  void drop() noexcept override {}
  void restart() override;

 private:
  struct Group {
    int64_t whole_offset = 0;       // in the parameter segment, in bytes
    std::vector<Mapping> own_rows;  // one a parameter
    at::Tensor whole;               // over the read-only mapping
    Buffer copy;                    // Access::write: this rank's whole buffer, as of `copied`
    uint64_t copied = 0;
    int64_t dedicated_offset = -1;  // in a gradient segment, in bytes; -1: ring
    int64_t slot_offset = 0;        // of the round under way
    uint64_t contributed = 0, reduced = 0, published = 0;
    Buffer gradient_buffer;  // where it is summed apart
    at::Tensor gradient;
    double divisor = 1;
    Booking rows_booking;
    std::vector<Booking> slot_bookings;
  };

  GroupEpochs& epochs(size_t g, int rank) const;
  void make_parameters(Ledger& ledger);
  void guard_parameters();
  void make_slots();
  void make_gradient(size_t g);
  void wait_until_reduced(size_t g);
  void copy_peers_rows(size_t g);
  at::Tensor segment_rows(size_t g, size_t parameter);
  at::Tensor slot_piece(int rank, int64_t offset, size_t g, int64_t first, int64_t elements) const;

  HostSegment& host_;
  Ledger& ledger_;
  StorePlan plan_;
  std::vector<int> owned_;
  std::vector<Group> groups_;

  SharedMemory parameters_;
  Mapping view_;
  std::optional<WriteGuard> guard_;  // over view_
  SharedMemory epoch_memory_;
  Mapping epoch_mapping_;
  std::vector<SharedMemory> gradient_memory_;  // one segment a rank
  std::vector<Mapping> gradients_;             // ours writable, the peers' read-only
  int64_t ring_offset_[2] = {0, 0};
  int64_t ring_user_[2] = {-1, -1};  // the group that used the slot last
  int ring_next_ = 0;
  Booking ring_booking_;
};

}  // namespace sherd
