// The transport over a c10d::Backend: Gloo, or any backend that has _allgather_base and alltoall_base.
//
// Waits for tensors of the CPU look every 100 ms for an abort and a dead peer. Before one of them throws, or recover()
// returns, backend->abort() has ended what was under way: no buffer is written to any more. A backend whose abort()
// does nothing must end by its own time-out. Recovery makes a new backend; so do subgroups.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <deque>
#include <functional>
#include <string>

#include "sherd/comm/descriptor.h"
#include "sherd/comm/peer_watch.h"
#include "sherd/comm/rendezvous.h"
#include "sherd/comm/transport.h"

namespace sherd {

/// Connects a backend over all ranks of a world, whose store nobody else uses.
using BackendFactory = std::function<c10::intrusive_ptr<c10d::Backend>(const World&)>;

class C10dTransport : public Transport {
 public:
  /// Collective: connects, and peers on this host exchange their process numbers, so that a dead one is named.
  C10dTransport(const World& world, BackendFactory factory, std::string name);
  ~C10dTransport() override;

  std::string_view name() const override { return family_->name; }
  std::vector<double> exchange(std::span<const double> values) override;
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) override;
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) override;
  std::shared_ptr<Transport> subgroup(const std::vector<int>& ranks) override;
  void finish() noexcept override;

 private:
  void tell_abort(std::string_view cause) noexcept override;
  void run_recovery() override;
  /// What a transport shares with its subgroups. The world is that of all ranks.
  struct Family {
    World world;
    BackendFactory factory;
    std::string name;
    PeerWatch watch = {};
    uint64_t generation = 0;  // how many aborts are forgotten
    uint64_t meetings = 0;    // calls of recover()
    std::vector<C10dTransport*> members = {};
  };

  /// The gathering of all ranks' descriptors of collective `number`.
  struct Comparison {
    uint64_t number;
    c10::intrusive_ptr<c10d::Work> work;
    at::Tensor descriptors;
    const char* what;
  };

  explicit C10dTransport(std::shared_ptr<Family> family);
  C10dTransport(std::shared_ptr<Family> family, World world);
  c10d::Backend& backend();
  Pending start(const char* what, const Descriptor& descriptor, std::vector<at::Tensor> held,
                const std::function<c10::intrusive_ptr<c10d::Work>(c10d::Backend&)>& collective);
  void compare_up_to(uint64_t number);
  void wait(c10d::Work& work, const char* what);
  [[noreturn]] void failed(const char* what, const std::exception& error);
  void look_for_trouble(std::string_view what);
  void tell_place(const std::string& place) noexcept;
  bool has_finished(int rank) const;
  std::string who_is_where() const;
  void break_off() noexcept;
  void await(const std::string& key, int rank) const;
  std::string meet_for_recovery();
  std::string abort_key() const;

  std::shared_ptr<Family> family_;
  World world_;  // of this transport's ranks
  c10::intrusive_ptr<c10d::Backend> backend_;
  uint64_t generation_ = 0;             // of backend_
  std::deque<Comparison> comparisons_;  // not yet done, in order: the first difference is the one that is reported
  uint64_t started_ = 0;
};

}  // namespace sherd
