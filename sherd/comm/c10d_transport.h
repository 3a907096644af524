// The transport over a c10d::Backend: Gloo, or any backend that has _allgather_base and alltoall_base.
//
// Waits for tensors of the CPU look every 100 ms for an abort and a dead peer. Before one of them throws, or recover()
// returns, backend->abort() has ended what was under way: no buffer is written to any more. A backend whose abort()
// does nothing must end by its own time-out. Recovery makes a new backend; so do subgroups.
//
// Control goes over the backend where it moves tensors of the CPU, else over the store (store_backend.h): a device is
// never waited for, and a backend that knows no CPU suffices.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <deque>
#include <functional>
#include <string>

#include "sherd/comm/c10d_family.h"
#include "sherd/comm/descriptor.h"
#include "sherd/comm/transport.h"

namespace sherd {

/// Connects a backend over all ranks of a world, whose store nobody else uses.
using BackendFactory = std::function<c10::intrusive_ptr<c10d::Backend>(const World&)>;

/// Whose tensors a backend moves.
enum class Moves { cpu_tensors, device_tensors };

class C10dTransport : public Transport {
 public:
  /// Collective: connects, and peers on this host exchange their process numbers, so that a dead one is named.
  C10dTransport(const World& world, BackendFactory factory, std::string name, Moves moves = Moves::cpu_tensors);
  ~C10dTransport() override;

  std::string_view name() const override { return shared_->family.name(); }
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) override;
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) override;
  void finish() noexcept override { shared_->family.finish(); }
  std::optional<std::string> heard() override { return shared_->family.heard(); }

 private:
  /// What a transport has in common with its subgroups.
  struct Shared {
    C10dFamily family;  // its world is that of all ranks
    BackendFactory factory;
    Moves moves;
    std::vector<C10dTransport*> members = {};
  };

  /// The gathering of all ranks' descriptors of collective `number`.
  struct Comparison {
    uint64_t number;
    c10::intrusive_ptr<c10d::Work> work;
    at::Tensor descriptors;
    const char* what;
  };
  using Collective = std::function<c10::intrusive_ptr<c10d::Work>()>;

  explicit C10dTransport(std::shared_ptr<Shared> shared);
  C10dTransport(std::shared_ptr<Shared> shared, World world, Topology topology);
  void run_exchange(const Part& mine, std::span<std::byte> all) override;
  std::shared_ptr<Transport> make_subgroup(const std::vector<int>& ranks, int place) override;
  void tell_abort(std::string_view cause) noexcept override;
  void run_recovery() override;

  void connect();
  /// Before a call on a backend: a new one, where a recovery elsewhere in the family has done away with the last.
  c10d::Backend& data();
  c10d::Backend& control();
  bool compares(const at::Tensor& sent) const;
  Pending start(const char* what, const Descriptor& descriptor, std::vector<at::Tensor> held,
                const Collective& collective);
  void compare_up_to(uint64_t number);
  void wait(c10d::Work& work, const char* what);
  [[noreturn]] void failed(const char* what, const std::exception& error);
  void look_for_trouble(std::string_view what);
  void break_off() noexcept;

  std::shared_ptr<Shared> shared_;
  World world_;  // of this transport's ranks
  c10::intrusive_ptr<c10d::Backend> data_, control_;
  uint64_t generation_ = 0;             // of the backends
  std::deque<Comparison> comparisons_;  // not yet done, in order: the first difference is the one that is reported
  uint64_t started_ = 0;
};

}  // namespace sherd
