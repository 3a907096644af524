#include "sherd/comm/transport.h"

#include <algorithm>

#include "sherd/base/error.h"

namespace sherd {
namespace {

class Solo : public Transport {
 public:
  Solo() : Transport(0, Topology::one_host(1, Topology::Memory::separate)) {}
  std::string_view name() const override { return "solo"; }
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view) override {
    whole.copy_(shard);
    return {};
  }
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view) override {
    received.copy_(send);
    return {};
  }

 private:
  void run_exchange(const Part& mine, std::span<std::byte> all) override {
    std::copy_n(mine.bytes().begin(), all.size(), all.begin());
  }
  std::shared_ptr<Transport> make_subgroup(const std::vector<int>&, int) override { return solo_transport(); }
  void tell_abort(std::string_view) noexcept override {}
  void run_recovery() override {}
};

}  // namespace

HostSegment& Transport::host_memory() {
  HostSegment* memory = shared();
  SHERD_CHECK(topology().one_memory() && memory != nullptr);
  return *memory;
}

std::shared_ptr<Transport> Transport::subgroup(const std::vector<int>& ranks) {
  SHERD_CHECK(!ranks.empty() && ranks.front() >= 0 && ranks.back() < size());
  SHERD_CHECK(std::adjacent_find(ranks.begin(), ranks.end(), std::greater_equal<>()) == ranks.end());
  const auto mine = std::find(ranks.begin(), ranks.end(), rank());
  SHERD_CHECK(mine != ranks.end());
  if (ranks.size() == 1) return solo_transport();
  auto group = make_subgroup(ranks, static_cast<int>(mine - ranks.begin()));
  adopt(*group);
  return group;
}

std::unique_ptr<Transport> solo_transport() { return std::make_unique<Solo>(); }

}  // namespace sherd
