// Ranks of several hosts: a transport over all of them, and inside each host the memory that its ranks share.
//
// Whoever works on both levels asks the topology which ranks are where, and this for the subgroups:
//   inside = transport.subgroup(topology.ranks_of(topology.host_of(rank)));  // topology().one_memory()
//   across = transport.subgroup(topology.across(rank));
// Subgroups of one host's ranks are in its memory; all else goes by the transport over all ranks. They are one family:
// an abort anywhere reaches every wait on both levels, named by the rank's number among all, and any member recovers
// both: the memory of each host first, then the whole, whose verdict is that of all ranks. A host whose memory does not
// recover lets the others wait as long as their time-out.
#pragma once

#include "sherd/comm/host_segment.h"
#include "sherd/comm/rendezvous.h"
#include "sherd/comm/transport.h"

namespace sherd {

class HostsTransport : public Transport, public std::enable_shared_from_this<HostsTransport> {
 public:
  /// `whole` is over all ranks of `world`, and used by nobody else from here on. Hosts are those that ranks declare
  /// (World::host), else what `whole` knows. Collective. Throws FaultError where ranks count as on one host and cannot
  /// share memory.
  static std::shared_ptr<HostsTransport> join(const World& world, std::shared_ptr<Transport> whole);

  std::string_view name() const override { return "hosts"; }
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) override {
    return whole_->all_gather(shard, whole, what);
  }
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) override {
    return whole_->all_to_all(send, received, what);
  }
  void drop_staging() override { whole_->drop_staging(); }
  int64_t bytes_sent() const override;
  void finish() noexcept override;
  std::optional<std::string> heard() override { return whole_->heard(); }

 private:
  HostsTransport(std::shared_ptr<Transport> whole, std::shared_ptr<HostSegment> inside, int rank, Topology topology);
  void run_exchange(const Part& mine, std::span<std::byte> all) override { exchange_over(*whole_, mine, all); }
  HostSegment* shared() override { return inside_.get(); }
  std::shared_ptr<Transport> make_subgroup(const std::vector<int>& ranks, int place) override;
  std::shared_ptr<void> keeper() override { return shared_from_this(); }
  void tell_abort(std::string_view cause) noexcept override;
  void run_recovery() override;
  void show_call() noexcept override;

  std::shared_ptr<Transport> whole_;
  std::shared_ptr<HostSegment> inside_;  // null where this rank is alone on its host
};

}  // namespace sherd
