// Transports among some of the ranks: their collectives, and that they share aborts and recoveries with the whole.
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <barrier>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using testing::Kind;
using testing::run_ranks;

class SubgroupTest : public ::testing::TestWithParam<std::tuple<Kind, int>> {
 protected:
  int ranks() const { return std::get<1>(GetParam()); }
  void run(const testing::SharedBody& body) { run_ranks(ranks(), std::get<0>(GetParam()), body); }
};

INSTANTIATE_TEST_SUITE_P(Kinds, SubgroupTest,
                         ::testing::Combine(::testing::ValuesIn(testing::kAllKinds), ::testing::Range(1, 5)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(std::get<0>(info.param)),
                                              std::get<1>(info.param));
                         });

/// The ranks r of n for which part(r) is what it is for `me`.
std::vector<int> part_of(int n, int me, const std::function<int(int)>& part) {
  std::vector<int> result;
  for (int r = 0; r < n; ++r)
    if (part(r) == part(me)) result.push_back(r);
  return result;
}

/// Collectives among `members` (ranks of the whole), whose place in the group this must be.
void expect_group(Transport& group, const std::vector<int>& members, int me, int salt) {
  const auto n = static_cast<int64_t>(members.size());
  ASSERT_EQ(group.size(), n);
  ASSERT_EQ(members[static_cast<size_t>(group.rank())], me);
  const auto value = [&](int rank) { return salt * 100.0 + rank; };
  const auto all = group.exchange(std::array{value(me)});
  for (size_t i = 0; i < members.size(); ++i) ASSERT_EQ(all[i], value(members[i]));
  const at::Tensor whole = at::full({10 * n}, -1.0), received = at::full({10 * n}, -1.0), send = at::empty({10 * n});
  for (int64_t i = 0; i < n; ++i) send.narrow(0, 10 * i, 10).fill_(value(me) * 10 + static_cast<double>(i));
  group.all_gather(at::full({10}, value(me)), whole).wait();
  group.all_to_all(send, received).wait();
  for (int64_t i = 0; i < n; ++i) {
    const double theirs = value(members[static_cast<size_t>(i)]);
    ASSERT_TRUE(at::equal(whole.narrow(0, 10 * i, 10), at::full({10}, theirs)));
    ASSERT_TRUE(at::equal(received.narrow(0, 10 * i, 10), at::full({10}, theirs * 10 + group.rank())));
  }
}

TEST_P(SubgroupTest, EveryPartitionWorksAllItsGroupsAtOnce) {
  run([](std::shared_ptr<Transport> transport) {
    const int n = transport->size(), me = transport->rank();
    int salt = 0;
    for (const auto& part : std::vector<std::function<int(int)>>{
             [](int) { return 0; }, [](int r) { return r; }, [](int r) { return r % 2; }, [](int r) { return r / 2; },
             [](int r) { return r == 1; }}) {
      const auto members = part_of(n, me, part);
      const auto group = transport->subgroup(members);
      if (transport->name() != "hosts") {
        EXPECT_EQ(group->name(), members.size() == 1 ? "solo" : transport->name());
      }
      EXPECT_EQ(group->topology().one_memory(), group->name() == "host");
      for (int round = 0; round < 3; ++round) {
        expect_group(*group, members, me, ++salt);
        EXPECT_EQ(transport->exchange({}).size(), 0) << "and the whole between";
      }
    }
  });
}

TEST_P(SubgroupTest, SeveralLiveSideBySideAndInsideEachOther) {
  run([](std::shared_ptr<Transport> transport) {
    const int n = transport->size(), me = transport->rank();
    const auto everybody = part_of(n, me, [](int) { return 0; });
    const auto first = transport->subgroup(everybody), second = transport->subgroup(everybody);
    expect_group(*second, everybody, me, 1);
    expect_group(*first, everybody, me, 2);
    const auto half = part_of(n, me, [n](int r) { return 2 * r / n; });
    const auto inner = first->subgroup(half);
    expect_group(*inner, half, me, 3);
    expect_group(*second, everybody, me, 4);
    expect_group(*inner, half, me, 5);
  });
}

TEST_P(SubgroupTest, OutlivesTheVariableThatHeldTheWhole) {
  run([](std::shared_ptr<Transport> transport) {
    const int me = transport->rank();
    const auto members = part_of(transport->size(), me, [](int r) { return r / 2; });
    const auto group = transport->subgroup(members);
    transport.reset();
    expect_group(*group, members, me, 1);
  });
}

TEST_P(SubgroupTest, RanksThatMakeNoGroupAreABug) {
  run([](std::shared_ptr<Transport> transport) {
    const int me = transport->rank(), n = transport->size();
    for (const auto& ranks : std::vector<std::vector<int>>{{}, {-1, me}, {me, n}, {me, me}, {me + 1, me}, {me + 1}})
      EXPECT_THROW(transport->subgroup(ranks), std::logic_error);
    barrier(*transport);
  });
}

TEST_P(SubgroupTest, AnAbortElsewhereReachesAWaitInItAndRecoveryToo) {
  if (ranks() < 3) GTEST_SKIP() << "needs a group of two, and somebody else";
  std::barrier all_have_checked(ranks());  // an abort may reach a rank that is about to leave a collective
  run([&](std::shared_ptr<Transport> transport) {
    const int n = transport->size(), me = transport->rank();
    const auto members = part_of(n, me, [](int r) { return r < 2; });
    const auto group = transport->subgroup(members);
    for (int round = 0; round < 4; ++round) {
      expect_group(*group, members, me, round);
      all_have_checked.arrive_and_wait();
      // Rank 2 gives up on the whole, or on its own group where that is more than itself.
      Transport& any = n == 4 && round % 2 == 1 ? *group : *transport;
      std::string text = "rank 2 gave up: elsewhere";
      if (me == 2) any.abort("elsewhere");
      try {
        if (me == 0) barrier(*group);  // where rank 1 does not come
        if (me == 1 || me == 3) barrier(*transport);
      } catch (const FaultError& error) {
        text = error.what();
      }
      EXPECT_NE(text.find("rank 2 gave up: elsewhere"), std::string::npos) << text;
      any.recover();
    }
    expect_group(*group, members, me, 9);
  });
}

}  // namespace
}  // namespace sherd
