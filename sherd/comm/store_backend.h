// A c10d backend whose all-gathers go over a c10d::Store: control beside a backend that moves a device's tensors only.
//
// A gather costs each rank two round trips to the store and a deletion, whatever the number of ranks; bytes as an
// all-gather must. It runs in wait(): nothing moves in the background. At most two are under way at a time: who begins
// a third has waited for the first.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <atomic>
#include <memory>

#include "sherd/comm/rendezvous.h"

namespace sherd {

class StoreBackend : public c10d::Backend {
 public:
  /// Over all ranks of a world, whose store nobody else uses.
  explicit StoreBackend(const World& world);

  const std::string getBackendName() const override { return "store"; }
  /// out: [size * n] bytes, in: [n], of the CPU.
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& out, at::Tensor& in,
                                                 const c10d::AllgatherOptions& options = {}) override;
  /// Waits under way here throw.
  void abort() override { *aborted_ = true; }

 private:
  class Gather;
  World world_;
  std::shared_ptr<std::atomic<bool>> aborted_ = std::make_shared<std::atomic<bool>>(false);
  uint64_t gathers_ = 0;
};

}  // namespace sherd
