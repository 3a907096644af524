// Stores where ranks of this machine count as on two hosts.
#include <gtest/gtest.h>

#include <barrier>

#include "sherd/base/error.h"
#include "tests/shard/toy_rounds.h"

namespace sherd::testing {
namespace {

// A store in the memory of each, made from the topology alone. An abort of a rank elsewhere ends its waits, and it goes
// on after the recovery of all.
TEST(StoresOfHosts, OneIsMadeInsideEachHostAndHearsOfAbortsElsewhere) {
  std::barrier all_have_checked(4);  // an abort may reach a rank that is about to leave a wait
  run_ranks(4, Kind::hosts, [&](std::shared_ptr<Transport> all) {
    const Topology& topology = all->topology();
    const auto inside = all->subgroup(topology.ranks_of(topology.host_of(all->rank())));
    ASSERT_EQ(inside->size(), 2);
    ASSERT_TRUE(inside->topology().one_memory());
    Ledger ledger;
    const StorePlan plan = toy_plan(find_strategy("zero3"), 2, SlotKind::ring);
    const auto store = make_store(*inside, ledger, plan);
    int64_t elements = 0;
    for (const auto& group : plan.groups)
      for (const auto& p : group.layout.parameters) elements += p.elements();
    double held = 0;
    for (const double bytes : inside->exchange(std::array{1.0 * ledger.total(MemoryKind::parameters)})) held += bytes;
    EXPECT_EQ(held, 4.0 * static_cast<double>(elements)) << "one copy a host";

    Rounds rounds(*store, plan, inside->rank());
    for (int round = 0; round < 3; ++round) {
      for (size_t g = 0; g < 4; ++g) {
        write_rows(*store, plan.groups[g], g, round);
        store->publish(g);
      }
      for (size_t g = 0; g < 4; ++g) expect_whole(store->unshard(g), plan.groups[g].layout, round);
      rounds.start_window();
      for (const size_t g : {3u, 2u, 1u, 0u}) rounds.contribute(g, round);
      rounds.finish();
      for (size_t g = 0; g < 4; ++g) expect_toy_sum(*store, plan.groups[g].layout, g, round, round + 1);
      all_have_checked.arrive_and_wait();

      // The last rank gives up; on its host and on the other somebody waits in memory for what does not come.
      std::string text = "rank 3 gave up: elsewhere";
      if (all->rank() == 3) all->abort("elsewhere");
      if (all->rank() == 0 || all->rank() == 2) {
        try {
          store->open_slot(0).zero_();
          store->contribute(0);
          store->reduce(0, Round::first, Patience::wait);
        } catch (const FaultError& error) {
          text = error.what();
        }
      }
      EXPECT_NE(text.find("rank 3 gave up: elsewhere"), std::string::npos) << text;
      store->drop();
      (all->rank() % 2 == 0 ? *inside : *all).recover();
      store->restart();
      barrier(*all);
    }
  });
}

}  // namespace
}  // namespace sherd::testing
