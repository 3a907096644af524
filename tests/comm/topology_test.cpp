#include "sherd/comm/topology.h"

#include <gtest/gtest.h>

namespace sherd {
namespace {

using Memory = Topology::Memory;
using Ranks = std::vector<int>;

TEST(Topology, HostsAreNumberedAsTheirFirstRanksCome) {
  const std::vector<uint64_t> hosts = {7, 7, 3, 9, 3, 7};
  const Topology topology(hosts, Memory::shared);
  EXPECT_EQ(topology.ranks(), 6);
  EXPECT_EQ(topology.hosts(), 3);
  EXPECT_EQ(topology.ranks_of(0), (Ranks{0, 1, 5}));
  EXPECT_EQ(topology.ranks_of(1), (Ranks{2, 4}));
  EXPECT_EQ(topology.ranks_of(2), (Ranks{3}));
  for (int r = 0; r < 6; ++r) EXPECT_EQ(topology.host_of(r), (Ranks{0, 0, 1, 2, 1, 0})[static_cast<size_t>(r)]);
}

TEST(Topology, AcrossAreTheRanksOfOnePlace) {
  const std::vector<uint64_t> hosts = {7, 7, 3, 9, 3, 7};
  const Topology topology(hosts, Memory::shared);
  for (const int r : {0, 2, 3}) EXPECT_EQ(topology.across(r), (Ranks{0, 2, 3}));
  for (const int r : {1, 4}) EXPECT_EQ(topology.across(r), (Ranks{1, 4}));
  EXPECT_EQ(topology.across(5), (Ranks{5}));
}

TEST(Topology, OneMemoryIsThatOfOneHostWhichSharesIt) {
  const std::vector<uint64_t> hosts = {1, 1, 2, 2};
  EXPECT_TRUE(Topology::one_host(3, Memory::shared).one_memory());
  EXPECT_FALSE(Topology::one_host(3, Memory::separate).one_memory());
  const Topology two(hosts, Memory::shared);
  EXPECT_FALSE(two.one_memory());
  EXPECT_TRUE(two.among(two.ranks_of(1)).one_memory());
  EXPECT_FALSE(two.among(two.across(0)).one_memory());
  EXPECT_EQ(two.among(two.across(1)).hosts(), 2);
  EXPECT_FALSE(Topology(hosts, Memory::separate).among(two.ranks_of(0)).one_memory());
}

}  // namespace
}  // namespace sherd
