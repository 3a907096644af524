// Both stores, on every transport, for every strategy: parameters travel whole, gradients are summed in one order.
#include "sherd/shard/store.h"

#include <ATen/ops/full.h>

#include "sherd/base/error.h"
#include "tests/shard/toy_rounds.h"

namespace sherd::testing {
namespace {

using std::chrono::milliseconds;

class Stores : public ::testing::TestWithParam<RankCase> {
 protected:
  void run(const Body& body) { run_ranks(GetParam().ranks, GetParam().kind, body); }
  void for_each_store(const std::function<void(Transport&, Store&, const StorePlan&)>& body,
                      const std::vector<SlotKind>& kinds = {SlotKind::ring}, size_t groups = 4) {
    run([&](Transport& transport) {
      for (const auto& strategy : strategies()) {
        for (const SlotKind kind : kinds) {
          SCOPED_TRACE(fmt::format("{} rank {}", strategy.name, transport.rank()));
          Ledger ledger;
          const StorePlan plan = toy_plan(strategy, transport.size(), kind, groups);
          const auto store = make_store(transport, ledger, plan);
          body(transport, *store, plan);
          barrier(transport);
        }
      }
    });
  }
};
INSTANTIATE_TEST_SUITE_P(All, Stores, ::testing::ValuesIn(rank_cases()), rank_case_name);

TEST_P(Stores, UnshardGivesWhatTheOwnersPublished) {
  for_each_store([](Transport& transport, Store& store, const StorePlan& plan) {
    for (int version = 0; version < 3; ++version) {
      for (size_t g = 0; g < plan.groups.size(); ++g) {
        write_rows(store, plan.groups[g], g, version);
        store.publish(g);
      }
      for (const size_t g : {2u, 0u, 1u, 3u}) {
        for (int again = 0; again < 2; ++again) {
          expect_whole(store.unshard(g), plan.groups[g].layout, version);
          expect_whole(store.unshard(g), plan.groups[g].layout, version);
          store.reshard(g);
        }
      }
      barrier(transport);
    }
  });
}

TEST_P(Stores, BegunUnshardsMayBeManyAndMayBeDropped) {
  for_each_store([](Transport& transport, Store& store, const StorePlan& plan) {
    for (int version = 0; version < 3; ++version) {
      for (size_t g = 0; g < 4; ++g) {
        write_rows(store, plan.groups[g], g, version);
        store.publish(g);
      }
      for (size_t g = 0; g < 4; ++g) store.begin_unshard(g);
      store.begin_unshard(1);
      store.reshard(0);
      for (size_t g = 0; g < 4; ++g) expect_whole(store.unshard(g), plan.groups[g].layout, version);
      for (size_t g = 0; g < 4; ++g) store.reshard(g);
      for (size_t g = 0; g < 2; ++g) store.begin_unshard(g);  // in flight when the next version is written
      barrier(transport);
    }
  });
}

TEST_P(Stores, OwnedRowsReadBackWhatWasWritten) {
  for_each_store([](Transport&, Store& store, const StorePlan& plan) {
    for (size_t g = 0; g < 4; ++g) write_rows(store, plan.groups[g], g, 3);
    for (size_t g = 0; g < 4; ++g) {
      const GroupLayout& layout = plan.groups[g].layout;
      for (const int owner : store.owned()) {
        for (size_t p = 0; p < layout.parameters.size(); ++p) {
          const Rows own = elements_of(layout, p, owner);
          EXPECT_TRUE(at::equal(store.rows(g, p, owner), toy_values(layout, p, 3).narrow(0, own.first, own.count)));
        }
      }
    }
  });
}

TEST_P(Stores, OwnersAreThisRankOrAll) {
  for_each_store([](Transport& transport, Store& store, const StorePlan& plan) {
    std::vector<int> all(static_cast<size_t>(transport.size()));
    std::iota(all.begin(), all.end(), 0);
    const bool everything = plan.strategy.optimizer == Spread::whole && !transport.topology().one_memory();
    EXPECT_EQ(store.owned(), everything ? all : std::vector<int>{transport.rank()});
  });
}

TEST_P(Stores, ManyRoundsOfManyGroupsAreSummedInOneOrder) {
  for_each_store(
      [](Transport& transport, Store& store, const StorePlan& plan) {
        Rounds rounds(store, plan, transport.rank());
        int round = 0;
        for (const int in_window : {1, 3, 2, 1}) {
          const int first = round;
          rounds.start_window();
          for (int k = 0; k < in_window; ++k, ++round) {
            for (const size_t g : {3u, 2u, 1u, 0u}) rounds.contribute(g, round);
            if (k % 2 == 0) rounds.finish();
          }
          rounds.finish();
          for (size_t g = 0; g < 4; ++g) expect_toy_sum(store, plan.groups[g].layout, g, first, round);
        }
      },
      {SlotKind::ring, SlotKind::dedicated});
}

// A rank that is late with its reductions still finds the gradients of the round that it reduces.
TEST_P(Stores, ALatePeerReadsTheRightRound) {
  for (const size_t groups : {1u, 2u, 3u}) {
    for_each_store(
        [&](Transport& transport, Store& store, const StorePlan& plan) {
          const milliseconds pause(transport.rank() == transport.size() - 1 ? 10 : 0);
          Rounds rounds(store, plan, transport.rank());
          for (int round = 0; round < 4; ++round) {
            for (size_t g = groups; g-- > 0;) rounds.contribute(g, round, pause);
            std::this_thread::sleep_for(pause);
            rounds.finish();
          }
          for (size_t g = 0; g < groups; ++g) expect_toy_sum(store, plan.groups[g].layout, g, 0, 4);
        },
        {SlotKind::ring, SlotKind::dedicated}, groups);
  }
}

TEST_P(Stores, SummingInPlaceGivesTheSameBits) {
  run([](Transport& transport) {
    for (const auto& strategy : strategies()) {
      for (const Summing summing : {Summing::apart, Summing::in_place}) {
        Ledger ledger;
        StorePlan plan = toy_plan(strategy, transport.size(), SlotKind::ring);
        for (size_t g = 2; g < 4; ++g) plan.groups[g].slot = SlotKind::dedicated;
        plan.summing = summing;
        const auto store = make_store(transport, ledger, plan);
        Rounds rounds(*store, plan, transport.rank());
        for (int round = 0; round < 3; ++round) {
          rounds.start_window();
          for (const size_t g : {0u, 3u, 1u, 2u}) rounds.contribute(g, round);
          rounds.finish();
          for (size_t g = 0; g < 4; ++g) expect_toy_sum(*store, plan.groups[g].layout, g, round, round + 1);
        }
        barrier(transport);
      }
    }
  });
}

TEST_P(Stores, TheRingBlocksOnTheOlderOfTwo) {
  run([](Transport& transport) {
    Ledger ledger;
    const StorePlan plan = toy_plan(find_strategy("zero2"), transport.size(), SlotKind::ring, 3);
    const auto store = make_store(transport, ledger, plan);
    const auto contribute = [&](size_t g) {
      store->open_slot(g).zero_();
      store->contribute(g);
    };
    const auto blocked = [&] {
      return std::array{store->slot_blocked_by(0), store->slot_blocked_by(1), store->slot_blocked_by(2)};
    };
    const auto reduce = [&](size_t g) { EXPECT_TRUE(store->reduce(g, Round::first, Patience::wait)); };
    EXPECT_EQ(blocked(), (std::array<int64_t, 3>{-1, -1, -1}));
    contribute(0);
    EXPECT_EQ(store->slot_blocked_by(0), 0);  // its own round is still to be reduced
    EXPECT_EQ(store->slot_blocked_by(1), -1);
    contribute(1);
    EXPECT_EQ(store->slot_blocked_by(2), 0);
    reduce(0);
    EXPECT_EQ(store->slot_blocked_by(0), -1);
    EXPECT_EQ(store->slot_blocked_by(2), -1);
    contribute(2);
    EXPECT_EQ(store->slot_blocked_by(0), 1);
    reduce(1);
    reduce(2);
    EXPECT_EQ(blocked(), (std::array<int64_t, 3>{-1, -1, -1}));
    barrier(transport);
  });
}

TEST_P(Stores, ADedicatedSlotBlocksOnlyItself) {
  run([](Transport& transport) {
    Ledger ledger;
    const StorePlan plan = toy_plan(find_strategy("zero1"), transport.size(), SlotKind::dedicated);
    const auto store = make_store(transport, ledger, plan);
    for (size_t g = 0; g < 3; ++g) {
      EXPECT_EQ(store->slot_blocked_by(g), -1);
      store->open_slot(g).zero_();
      store->contribute(g);
      EXPECT_EQ(store->slot_blocked_by(g), static_cast<int64_t>(g));
    }
    EXPECT_EQ(store->slot_blocked_by(3), -1);
    for (size_t g = 0; g < 3; ++g) {
      EXPECT_TRUE(store->reduce(g, Round::first, Patience::wait));
      EXPECT_EQ(store->slot_blocked_by(g), -1);
    }
    barrier(transport);
  });
}

TEST_P(Stores, FrozenGroupsHaveParametersOnly) {
  run([](Transport& transport) {
    for (const auto& strategy : strategies()) {
      Ledger ledger;
      StorePlan plan = toy_plan(strategy, transport.size(), SlotKind::ring);
      for (auto& group : plan.groups) group.set_roles(Roles(group.layout.parameters.size(), Role::frozen));
      const auto store = make_store(transport, ledger, plan);
      write_rows(*store, plan.groups[2], 2, 1);
      store->publish(2);
      expect_whole(store->unshard(2), plan.groups[2].layout, 1);
      EXPECT_FALSE(store->gradient(2).defined());
      EXPECT_EQ(ledger.total(MemoryKind::gradients), 0);
      barrier(transport);
    }
  });
}

// What all ranks hold of the parameters, and each of the reduced gradients, by the books.
TEST_P(Stores, HoldWhatTheStrategySays) {
  run([](Transport& transport) {
    const int ranks = transport.size();
    for (const auto& strategy : strategies()) {
      Ledger ledger;
      const StorePlan plan = toy_plan(strategy, ranks, SlotKind::ring);
      int64_t elements = 0, whole = 0, shard = 0;
      for (const auto& group : plan.groups) {
        for (const auto& p : group.layout.parameters) elements += p.elements();
        whole += group.layout.whole_elements;
        shard += group.layout.shard_elements;
      }
      const auto store = make_store(transport, ledger, plan);
      const auto bytes = static_cast<double>(ledger.total(MemoryKind::parameters));
      const std::vector<double> all = transport.exchange(std::array{bytes});
      const double sum = std::accumulate(all.begin(), all.end(), 0.0);
      const bool spread = strategy.parameters == Spread::sharded && ranks > 1;
      if (transport.topology().one_memory()) {
        EXPECT_EQ(sum, static_cast<double>(4 * elements)) << "one copy of everything";
      } else {
        EXPECT_EQ(sum, static_cast<double>(4 * ranks * (spread ? shard : whole)));
      }
      if (strategy.gradients == Spread::sharded) {
        EXPECT_EQ(ledger.total(MemoryKind::gradients), 4 * shard);
      }
    }
  });
}

TEST(SharedStore, WritesToRowsAreSeenByPeersInPlace) {
  for (const int ranks : {2, 3}) {
    run_ranks(ranks, Kind::host, [](Transport& transport) {
      Ledger ledger;
      const StorePlan plan = toy_plan(find_strategy("zero3"), transport.size(), SlotKind::ring);
      const auto store = make_store(transport, ledger, plan);
      std::vector<at::Tensor> views;
      for (size_t g = 0; g < 4; ++g) views.push_back(store->unshard(g));
      for (int version = 1; version < 4; ++version) {
        barrier(transport);
        for (size_t g = 0; g < 4; ++g) write_rows(*store, plan.groups[g], g, version);
        barrier(transport);
        for (size_t g = 0; g < 4; ++g) expect_whole(views[g], plan.groups[g].layout, version);
      }
    });
  }
}

TEST(SharedStore, ReducesAtOnceOnlyWhatIsThere) {
  run_ranks(3, Kind::host, [](Transport& transport) {
    Ledger ledger;
    const StorePlan plan = toy_plan(find_strategy("zero2"), transport.size(), SlotKind::ring);
    const auto store = make_store(transport, ledger, plan);
    const auto contribute = [&] {
      store->open_slot(0).fill_(1);
      store->contribute(0);
    };
    if (transport.rank() == 1) {
      contribute();
      EXPECT_FALSE(store->reduce(0, Round::first, Patience::now_or_not));
    }
    barrier(transport);
    if (transport.rank() != 1) contribute();
    barrier(transport);
    EXPECT_TRUE(store->reduce(0, Round::first, Patience::now_or_not));
    EXPECT_TRUE(at::equal(store->gradient(0), at::full_like(store->gradient(0), 3)));
    barrier(transport);
  });
}

TEST(PrivateStore, WritesToRowsAreNotSeenUntilPublished) {
  for (const Kind kind : {Kind::threads, Kind::gloo}) {
    run_ranks(2, kind, [](Transport& transport) {
      for (const char* strategy : {"zero1", "zero3"}) {
        Ledger ledger;
        const StorePlan plan = toy_plan(find_strategy(strategy), 2, SlotKind::ring);
        const auto store = make_store(transport, ledger, plan);
        write_rows(*store, plan.groups[2], 2, 0);
        store->publish(2);
        const at::Tensor whole = store->unshard(2);
        const at::Tensor before = whole.clone();
        const GroupLayout& layout = plan.groups[2].layout;
        // The rows of the other rank.
        const Rows other = elements_of(layout, 0, 1 - transport.rank());
        write_rows(*store, plan.groups[2], 2, 1);
        barrier(transport);
        EXPECT_TRUE(at::equal(whole.narrow(0, other.first, other.count), before.narrow(0, other.first, other.count)));
        store->publish(2);
        expect_whole(store->unshard(2), layout, 1);
      }
    });
  }
}

TEST(MakeStore, OfOneHostIsForTheCpu) {
  run_ranks(2, Kind::host, [](Transport& transport) {
    Ledger ledger;
    StorePlan plan = toy_plan(find_strategy("zero3"), 2, SlotKind::ring);
    plan.device = at::kCUDA;
    try {
      make_store(transport, ledger, plan);
      ADD_FAILURE() << "made a shared store on a GPU";
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "[transport] got 'host' with parameters on cuda, expected cpu; try transport gloo");
    }
  });
}

}  // namespace
}  // namespace sherd::testing
