#include "sherd/shard/param_group.h"

#include <ATen/core/grad_mode.h>

#include "tests/shard/toy_groups.h"

namespace sherd::testing {
namespace {

std::string error_of(const std::function<void()>& use) {
  try {
    use();
  } catch (const c10::Error& error) {
    return error.what();
  }
  return "no error";
}

/// One group of a store.
struct Toy {
  Toy(Transport& transport, const Strategy& strategy, std::string unit = "unit1")
      : transport(transport), plan(toy_plan(strategy, transport.size(), SlotKind::ring)) {
    plan.groups[1].layout.unit = std::move(unit);
    for (auto& group : plan.groups) group.parameters = strategy.parameters;
    store = make_store(transport, ledger, plan);
    for (const auto& p : plan.groups[1].layout.parameters) tensors.push_back(at::zeros(p.sizes).requires_grad_());
    for (const auto& tensor : tensors) made.push_back(tensor.unsafeGetTensorImpl());
    group.emplace(*store, pool, 1, plan.groups[1], tensors);
  }
  void update(int version) {
    write_rows(*store, plan.groups[1], 1, version);
    group->publish();
  }
  void expect_values(int version) {
    const at::NoGradGuard no_grad;
    const GroupLayout& layout = group->layout();
    for (size_t p = 0; p < tensors.size(); ++p) {
      EXPECT_EQ(group->parameters()[p].unsafeGetTensorImpl(), made[p]);
      EXPECT_EQ(tensors[p].sizes().vec(), layout.parameters[p].sizes);
      EXPECT_EQ(static_cast<int64_t>(tensors[p].storage().nbytes()), 4 * layout.parameters[p].elements());
      EXPECT_TRUE(at::equal(tensors[p].clone().view(-1), toy_values(layout, p, version))) << version;
    }
  }

  Transport& transport;
  Ledger ledger;
  BufferPool pool{ledger, MemoryKind::unsharded, at::kCPU};
  StorePlan plan;
  std::unique_ptr<Store> store;
  std::vector<at::Tensor> tensors;
  std::vector<const c10::TensorImpl*> made;
  std::optional<ParamGroup> group;
};

class ParamGroups : public ::testing::TestWithParam<RankCase> {
 protected:
  void for_each_strategy(const std::function<void(Toy&)>& body, const std::string& unit = "unit1") {
    run_ranks(GetParam().ranks, GetParam().kind, [&](Transport& transport) {
      for (const auto& strategy : strategies()) {
        SCOPED_TRACE(fmt::format("{} rank {}", strategy.name, transport.rank()));
        Toy toy(transport, strategy, unit);
        body(toy);
        barrier(transport);
      }
    });
  }
};
INSTANTIATE_TEST_SUITE_P(All, ParamGroups, ::testing::ValuesIn(rank_cases()), rank_case_name);

TEST_P(ParamGroups, GoFromShardedToUnshardedAndBack) {
  for_each_strategy([](Toy& toy) {
    EXPECT_EQ(toy.group->index(), 1u);
    EXPECT_TRUE(toy.group->trainable());
    EXPECT_EQ(toy.group->state(), GroupState::sharded);
    toy.update(1);
    for (int times = 0; times < 2; ++times) {
      toy.group->begin_unshard();
      toy.group->begin_unshard();
      EXPECT_EQ(toy.group->state(), GroupState::unsharding);
      toy.group->unshard();
      toy.group->unshard();
      EXPECT_EQ(toy.group->state(), GroupState::unsharded);
      toy.expect_values(1);
      toy.group->begin_unshard();
      EXPECT_EQ(toy.group->state(), GroupState::unsharded);
      toy.group->reshard();
      toy.group->reshard();
      EXPECT_EQ(toy.group->state(), GroupState::sharded);
    }
    toy.group->begin_unshard();
    toy.group->reshard();  // before it has arrived
    EXPECT_EQ(toy.group->state(), GroupState::sharded);
    toy.group->unshard();
    toy.expect_values(1);
  });
}

TEST_P(ParamGroups, AreArmedWhereTheStrategySpreadsParameters) {
  const auto use = [](Toy& toy) {
    const at::NoGradGuard no_grad;
    return error_of([&] { toy.tensors[1].clone(); });
  };
  const std::string armed = "[shard] parameter 'b.weight' of unit 'unit1' was used while it is sharded; try to use it";
  for_each_strategy([&](Toy& toy) {
    EXPECT_NE(use(toy).find(armed), std::string::npos) << use(toy);  // at first: there are no values yet
    toy.update(0);
    toy.group->unshard();
    EXPECT_EQ(use(toy), "no error");
    toy.group->reshard();
    if (toy.plan.strategy.parameters == Spread::sharded) {
      EXPECT_NE(use(toy).find(armed), std::string::npos) << use(toy);
    } else {
      EXPECT_EQ(use(toy), "no error");
    }
  });
}

TEST_P(ParamGroups, PublishShowsNewValuesAndBumpsVersions) {
  for_each_strategy([](Toy& toy) {
    for (int version = 0; version < 3; ++version) {
      const auto before = toy.tensors[0]._version(), other = toy.tensors[2]._version();
      toy.update(version);
      EXPECT_EQ(toy.group->state(), GroupState::sharded);
      EXPECT_EQ(toy.tensors[0]._version(), before + 1);
      EXPECT_EQ(toy.tensors[2]._version(), other + 1);
      toy.group->unshard();
      EXPECT_EQ(toy.tensors[0]._version(), before + 1) << "only an update changes values";
      toy.expect_values(version);
      if (version == 1) toy.group->reshard();
      // All ranks have read before the next version is written, as a step's exchange sees to.
      barrier(toy.transport);
    }
  });
}

TEST_P(ParamGroups, WritesThrowWhileUnsharded) {
  for_each_strategy([](Toy& toy) {
    toy.update(1);
    toy.group->unshard();
    const at::NoGradGuard no_grad;
    EXPECT_THROW(toy.tensors[1].mul_(2), c10::Error);
    EXPECT_THROW(toy.tensors[0].zero_(), c10::Error);
    toy.expect_values(1);
  });
}

TEST_P(ParamGroups, OfTheRootSaySo) {
  for_each_strategy(
      [](Toy& toy) {
        const at::NoGradGuard no_grad;
        const std::string text = error_of([&] { toy.tensors[0].clone(); });
        EXPECT_NE(text.find("parameter 'b.scale' of the root was"), std::string::npos) << text;
      },
      "");
}

}  // namespace
}  // namespace sherd::testing
