// The reducer over real stores: gradients are put into .grad by hand, in any order.
#include "sherd/shard/reducer.h"

#include <random>

#include "tests/shard/toy_reducer.h"

namespace sherd::testing {
namespace {

class Reducers : public ::testing::TestWithParam<RankCase> {
 protected:
  void for_each(const std::vector<std::string>& strategies, const std::function<void(ReducerRank&, int)>& body) {
    run_ranks(GetParam().ranks, GetParam().kind, [&](Transport& transport) {
      for (const auto& strategy : strategies) {
        for (const SlotKind slot : {SlotKind::ring, SlotKind::dedicated}) {
          SCOPED_TRACE(fmt::format("{} rank {}", strategy, transport.rank()));
          ReducerRank rank(transport, find_strategy(strategy), slot);
          body(rank, transport.rank());
          barrier(transport);
        }
      }
    });
  }
  void with_sharded_gradients(const std::function<void(ReducerRank&, int)>& body) {
    for_each({"zero2", "zero3"}, body);
  }
  void with_all(const std::function<void(ReducerRank&, int)>& body) {
    for_each({"ddp", "zero1", "zero2", "zero3"}, body);
  }
};
INSTANTIATE_TEST_SUITE_P(All, Reducers, ::testing::ValuesIn(rank_cases()), rank_case_name);

TEST_P(Reducers, ContributeInOneOrderHoweverGradientsCome) {
  with_all([](ReducerRank& rank, int index) {
    std::mt19937 random(static_cast<uint32_t>(index));
    for (int round = 0; round < 6; ++round) {
      std::vector<std::pair<size_t, size_t>> parameters;
      for (size_t g = 0; g < 4; ++g)
        for (size_t p = 0; p < rank.plan.groups[g].layout.parameters.size(); ++p) parameters.emplace_back(g, p);
      std::shuffle(parameters.begin(), parameters.end(), random);
      rank.store.contributed.clear();
      rank.store.reduced.clear();
      rank.reducer->begin(Gradients::reduce);
      for (const auto& [g, p] : parameters) rank.give(g, p, round);
      rank.reducer->finish();
      EXPECT_EQ(rank.store.contributed, (Order{3, 2, 1, 0}));
      EXPECT_EQ(rank.store.reduced, (Order{3, 2, 1, 0}));
      EXPECT_TRUE(rank.no_grads());
      const int first = round / 2 * 2;  // two rounds a window
      rank.expect_sums(first, round + 1);
      if (round % 2 == 1) rank.reducer->start_window();
    }
  });
}

TEST_P(Reducers, ALaterGroupWaitsInGradForItsTurn) {
  with_sharded_gradients([](ReducerRank& rank, int) {
    rank.reducer->begin(Gradients::reduce);
    rank.give_all(2, 0);
    rank.give_all(0, 0);
    EXPECT_TRUE(rank.store.contributed.empty());
    EXPECT_TRUE(rank.grad(2, 0).defined());
    rank.give(3, 1, 0);
    EXPECT_FALSE(rank.grad(3, 1).defined()) << "the next group's gradients are copied at once";
    EXPECT_TRUE(rank.store.contributed.empty());
    rank.give(3, 0, 0);
    EXPECT_EQ(rank.store.contributed, (Order{3, 2}));
    EXPECT_FALSE(rank.grad(2, 0).defined());
    EXPECT_TRUE(rank.grad(0, 0).defined());
    rank.give_all(1, 0);
    EXPECT_EQ(rank.store.contributed, (Order{3, 2, 1, 0}));
    rank.reducer->finish();
    rank.expect_sums(0, 1);
  });
}

TEST_P(Reducers, WholeGradientsHaveASlotEach) {
  for_each({"ddp", "zero1"}, [](ReducerRank& rank, int) {
    rank.reducer->begin(Gradients::reduce);
    for (const size_t g : {0u, 2u, 1u}) rank.give_all(g, 0);
    EXPECT_TRUE(rank.no_grads()) << "copied as they come, not only in their turn";
    EXPECT_TRUE(rank.store.contributed.empty());
    rank.give_all(3, 0);
    EXPECT_EQ(rank.store.contributed, (Order{3, 2, 1, 0})) << "in order, in the middle of backward";
    EXPECT_GE(rank.store.reduced.size(), 4 - kInFlight) << "few are under way at a time";
    rank.reducer->finish();
    rank.expect_sums(0, 1);
  });
}

TEST_P(Reducers, TellWhichGradientWasTheLastOfItsGroup) {
  with_all([](ReducerRank& rank, int) {
    for (int round = 0; round < 2; ++round) {
      rank.reducer->begin(round == 0 ? Gradients::hold : Gradients::reduce);
      EXPECT_FALSE(rank.reducer->complete(1));
      EXPECT_FALSE(rank.give(1, 2, round));
      EXPECT_FALSE(rank.give(1, 2, round));  // the same again does not count
      EXPECT_FALSE(rank.give(1, 0, round));
      EXPECT_FALSE(rank.reducer->complete(1));
      EXPECT_TRUE(rank.give(1, 1, round));
      EXPECT_TRUE(rank.reducer->complete(1));
      EXPECT_FALSE(rank.reducer->complete(0));
      EXPECT_FALSE(rank.give(1, 1, round));
      EXPECT_TRUE(rank.reducer->complete(1));
      rank.reducer->finish();
    }
  });
}

TEST_P(Reducers, MissingGradientsAreZero) {
  with_all([](ReducerRank& rank, int index) {
    rank.whole_round(0);  // leaves gradients in the slots
    rank.whole_round(1);
    rank.reducer->start_window();
    // Rank 0 has none at all; the others miss b.scale and all of group 2.
    rank.reducer->begin(Gradients::reduce);
    if (index != 0) {
      rank.give_all(0, 2);
      rank.give(1, 1, 2);
      rank.give(1, 2, 2);
      rank.give_all(3, 2);
    }
    rank.reducer->finish();
    for (size_t g = 0; g < 4; ++g) {
      const GroupLayout& layout = rank.plan.groups[g].layout;
      std::vector<at::Tensor> expected;
      for (size_t p = 0; p < layout.parameters.size(); ++p) {
        std::vector<at::Tensor> sources;
        for (int r = 0; r < layout.ranks; ++r) {
          const bool given = r != 0 && g != 2 && !(g == 1 && p == 0);
          const at::Tensor gradient = toy_gradient(layout, p, r, 2);
          sources.push_back(given ? gradient : at::zeros_like(gradient));
        }
        expected.push_back(tree(sources));
      }
      expect_gradient(rank.store, layout, g, expected);
    }
  });
}

// Each rank adds up its own before the ranks are summed.
TEST_P(Reducers, TwoGradientsBeforeTheContributionAreOneRound) {
  with_all([](ReducerRank& rank, int) {
    rank.reducer->begin(Gradients::reduce);
    rank.give(0, 0, 0);  // waits in .grad, or is in the slot
    rank.give(0, 0, 1);
    rank.give(3, 0, 0);  // is in the slot
    rank.give(3, 0, 1);
    rank.give(3, 1, 0);
    rank.give_all(2, 0);
    rank.give_all(1, 0);
    rank.give(0, 1, 0);
    rank.reducer->finish();
    EXPECT_EQ(rank.store.contributed, (Order{3, 2, 1, 0}));
    for (const size_t g : {0u, 3u}) {
      const GroupLayout& layout = rank.plan.groups[g].layout;
      std::vector<at::Tensor> both;
      for (int r = 0; r < layout.ranks; ++r)
        both.push_back(toy_gradient(layout, 0, r, 0) + toy_gradient(layout, 0, r, 1));
      expect_gradient(rank.store, layout, g, {tree(both), toy_sum(layout, 1, 0, 1)});
    }
  });
}

TEST_P(Reducers, ALateGradientMakesOneMoreRound) {
  with_sharded_gradients([](ReducerRank& rank, int) {
    for (const size_t late : {3u, 1u, 0u}) {
      rank.store.contributed.clear();
      rank.reducer->begin(Gradients::reduce);
      for (const size_t g : {3u, 2u, 1u}) rank.give_all(g, 0);
      if (rank.late()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      rank.give_all(0, 0);
      rank.give_all(late, 1);
      EXPECT_TRUE(rank.grad(late, 0).defined()) << "it waits for the end";
      rank.reducer->finish();
      EXPECT_TRUE(rank.no_grads());
      EXPECT_EQ(rank.store.contributed, (Order{3, 2, 1, 0, late}));
      for (size_t g = 0; g < 4; ++g) expect_toy_sum(rank.store, rank.plan.groups[g].layout, g, 0, g == late ? 2 : 1);
      rank.reducer->start_window();
    }
  });
}

TEST_P(Reducers, HeldGradientsGoWithTheNextRound) {
  with_all([](ReducerRank& rank, int) {
    rank.reducer->begin(Gradients::hold);
    for (size_t g = 0; g < 4; ++g) rank.give_all(g, 0);
    rank.reducer->finish();
    EXPECT_TRUE(rank.store.contributed.empty());
    EXPECT_TRUE(rank.grad(0, 0).defined());
    rank.reducer->begin(Gradients::reduce);
    for (const size_t g : {1u, 3u}) rank.give_all(g, 1);  // 0 and 2 have only what was held
    rank.reducer->finish();
    EXPECT_EQ(rank.store.contributed, (Order{3, 2, 1, 0}));
    EXPECT_TRUE(rank.no_grads());
    for (size_t g = 0; g < 4; ++g) {
      const GroupLayout& layout = rank.plan.groups[g].layout;
      std::vector<at::Tensor> expected;
      for (size_t p = 0; p < layout.parameters.size(); ++p) {
        std::vector<at::Tensor> sources;
        for (int r = 0; r < layout.ranks; ++r) {
          const at::Tensor held = toy_gradient(layout, p, r, 0);
          sources.push_back(g % 2 == 1 ? held + toy_gradient(layout, p, r, 1) : held);
        }
        expected.push_back(tree(sources));
      }
      expect_gradient(rank.store, layout, g, expected);
    }
  });
}

TEST_P(Reducers, AbandonDropsTheRoundAndTheWindow) {
  with_all([](ReducerRank& rank, int) {
    rank.whole_round(0);
    // In the middle of a backward: group 3 contributed (where gradients are spread), half of 2 in its slot, 0 waiting.
    for (int times = 0; times < 3; ++times) {
      rank.reducer->begin(Gradients::reduce);
      rank.give_all(3, 1);
      rank.give(2, 0, 1);
      rank.give_all(0, 1);
      rank.abandon();
      EXPECT_TRUE(rank.no_grads());
    }
    rank.whole_round(2);
    rank.expect_sums(2, 3);
    rank.whole_round(3);
    rank.expect_sums(2, 4);
    rank.abandon();  // between backwards
    rank.whole_round(4);
    rank.expect_sums(4, 5);
  });
}

TEST_P(Reducers, FollowWhatIsFrozenAndUnfrozen) {
  with_all([](ReducerRank& rank, int) {
    rank.whole_round(0);
    rank.reducer->start_window();
    // Of group 0 one is frozen and still has what was held; 1 waits for two of three; 2 is idle, 3 has no place at all.
    constexpr Role awaited = Role::awaited, frozen = Role::frozen, idle = Role::idle;
    rank.reducer->begin(Gradients::hold);
    rank.give(0, 1, 1);
    rank.reducer->finish();
    rank.set_roles({{awaited, Role::held}, {awaited, frozen, awaited}, {idle, idle}, {frozen, frozen}});
    EXPECT_FALSE(rank.store.gradient(3).defined());
    EXPECT_TRUE(rank.reducer->awaits_none(2) && rank.reducer->awaits_none(3) && !rank.reducer->awaits_none(0));
    rank.store.contributed.clear();
    rank.reducer->begin(Gradients::reduce);
    EXPECT_FALSE(rank.give(1, 0, 1));
    EXPECT_TRUE(rank.give(1, 2, 1));
    EXPECT_TRUE(rank.give(0, 0, 1));
    rank.reducer->finish();
    EXPECT_EQ(rank.store.contributed, (Order{1, 0}));
    EXPECT_TRUE(rank.reducer->given(0, 1) && !rank.reducer->given(2, 0));
    for (const size_t g : {0u, 1u}) {
      const GroupLayout& where = rank.plan.groups[g].gradients;
      std::vector<at::Tensor> expected;
      for (size_t p = 0; p < where.parameters.size(); ++p)
        expected.push_back(toy_sum(rank.plan.groups[g].layout, p, 1, 2));
      expect_gradient(rank.store, where, g, expected);
    }
    std::vector<Roles> all;
    for (const auto& group : rank.plan.groups) all.emplace_back(group.layout.parameters.size(), awaited);
    rank.set_roles(all);
    rank.reducer->start_window();
    rank.whole_round(2);
    rank.expect_sums(2, 3);
  });
}

TEST(Reducer, ReducesWhatIsThereWhileBackwardGoesOn) {
  run_ranks(3, Kind::host, [](Transport& transport) {
    ReducerRank rank(transport, find_strategy("zero2"), SlotKind::dedicated);
    rank.reducer->begin(Gradients::reduce);
    rank.give_all(3, 0);
    barrier(transport);
    rank.give_all(2, 0);
    ASSERT_FALSE(rank.store.reduced.empty());
    EXPECT_EQ(rank.store.reduced.front(), 3u);
    rank.reducer->finish();
    EXPECT_EQ(rank.store.reduced, (Order{3, 2, 1, 0}));
    barrier(transport);
  });
}

TEST(Reducer, KeepsBackWhatIsReducedAlongTheShardAxisUntilARoundOverAll) {
  for (const Kind kind : {Kind::threads, Kind::gloo}) {
    run_ranks(
        4, kind, SharedBody([](const std::shared_ptr<Transport>& transport) {
          const Mesh mesh = Mesh::over(4, transport->rank(), 2, 2);
          ReducerRank rank(*transport,
                           {transport->subgroup(mesh.shard_ranks()), transport->subgroup(mesh.replicate_ranks())},
                           find_strategy("hsdp"), SlotKind::ring);
          for (const auto& [gradients, round] : {std::pair(Gradients::reduce_shard_axis, 0), {Gradients::reduce, 1}}) {
            rank.reducer->begin(gradients);
            for (const size_t g : {3u, 2u, 1u, 0u}) rank.give_all(g, round);
            rank.reducer->finish();
            for (size_t g = 0; g < 4; ++g) {
              EXPECT_EQ(rank.store.keeps_back(g), round == 0);
              EXPECT_EQ(rank.reducer->rounds(g), round) << "a sum that is kept back is none of the window";
              EXPECT_TRUE(rank.reducer->given(g, 0));
            }
          }
          for (size_t g = 0; g < 4; ++g) {
            const GroupLayout& layout = rank.plan.groups[g].layout;
            std::vector<at::Tensor> expected;
            for (size_t p = 0; p < layout.parameters.size(); ++p) {
              std::vector<at::Tensor> replicas;
              for (const int first : {0, 2}) {
                const auto of_round = [&](int round) {
                  return tree({toy_gradient(layout, p, first, round), toy_gradient(layout, p, first + 1, round)});
                };
                replicas.push_back(of_round(0) + of_round(1));
              }
              expected.push_back(tree(replicas));
            }
            expect_gradient(rank.store, layout, g, expected);
          }
          barrier(*transport);
        }));
  }
}

TEST(Reducer, RefusesAGradientOfAnotherType) {
  run_ranks(1, Kind::threads, [](Transport& transport) {
    ReducerRank rank(transport, find_strategy("zero2"), SlotKind::ring);
    rank.reducer->begin(Gradients::reduce);
    rank.grad(3, 1) = at::zeros({5}, at::kDouble);
    try {
      rank.reducer->accumulated(3, 1);
      ADD_FAILURE() << "took a gradient of doubles";
    } catch (const c10::Error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("[shard] got a Strided Double gradient for 'd.bias', expected a dense one of Float"),
                std::string::npos)
          << text;
    }
    rank.abandon();
    rank.whole_round(0);
    rank.expect_sums(0, 1);
  });
}

}  // namespace
}  // namespace sherd::testing
