#include "sherd/step/shard_states.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "sherd/optim/rule_table.h"

namespace sherd::testing {
namespace {

OwnedShard shard(std::string fqn, std::string unit, int64_t rows, int64_t width, at::ScalarType type = at::kFloat,
                 int ranks = 1) {
  return {std::move(fqn), std::move(unit), {rows, width}, {0, rows}, width, ranks, at::zeros({rows * width}, type)};
}

std::vector<ShardState> states_of(Ledger& ledger, const std::vector<OwnedShard>& shards,
                                  const std::vector<ShardRule>& rules) {
  std::vector<const OwnedShard*> all;
  for (const auto& one : shards) all.push_back(&one);
  return make_states(ledger, all, rules);
}

TEST(ShardStates, AreZeroAlignedBookedForTheirUnitsAndGivenBack) {
  const auto adamw = make_update_rule({});
  Ledger ledger;
  const std::vector<OwnedShard> shards = {shard("a.x", "a", 3, 5), shard("a.y", "a", 4, 4, at::kBFloat16),
                                          shard("a.frozen", "a", 9, 9), shard("b.x", "b", 1, 1)};
  auto states =
      states_of(ledger, shards, {{adamw.get()}, {adamw.get(), MomentType::fp32, Master::split}, {}, {adamw.get()}});
  // 15 floats and 16 floats take a cache line each, 16 remainders half of one.
  EXPECT_EQ(ledger.by_unit(MemoryKind::moments), (std::map<std::string, int64_t>{{"a", 4 * 64}, {"b", 2 * 64}}));
  EXPECT_EQ(ledger.by_unit(MemoryKind::master), (std::map<std::string, int64_t>{{"a", 64}}));
  EXPECT_TRUE(states[2].tensors.empty());
  ASSERT_EQ(states[1].tensors.size(), 3u);
  EXPECT_EQ(states[1].kinds[2].name, "remainder");
  for (const auto& state : states) {
    for (size_t k = 0; k < state.tensors.size(); ++k) {
      const at::Tensor& tensor = state.tensors[k];
      EXPECT_EQ(tensor.count_nonzero().item<int64_t>(), 0);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 64, 0u);
      EXPECT_EQ(static_cast<int64_t>(tensor.storage().nbytes()), tensor.numel() * tensor.element_size())
          << "whoever saves it would save its neighbours too";
      tensor.fill_(static_cast<double>(k + 1));
    }
  }
  EXPECT_EQ(states[0].tensors[0].sum().item<double>(), 15) << "no two share memory";
  const at::Tensor kept = states[0].tensors[1];
  states.clear();
  EXPECT_EQ(ledger.by_unit(MemoryKind::moments), (std::map<std::string, int64_t>{{"a", 4 * 64}}))
      << "lives as long as any of its tensors";
  EXPECT_EQ(kept.sum().item<double>(), 30);
}

TEST(ShardStates, OfShardsWithoutRowsAreEmptyAndTakeNothing) {
  const auto adamw = make_update_rule({});
  Ledger ledger;
  const auto states = states_of(ledger, {shard("a.x", "a", 0, 5)}, {{adamw.get()}});
  EXPECT_EQ(ledger.total(), 0);
  ASSERT_EQ(states[0].tensors.size(), 2u);
  for (const auto& tensor : states[0].tensors) EXPECT_EQ(tensor.sizes(), at::IntArrayRef({0}));
}

TEST(ShardStates, PiecesKnowTheirPlaceInTheParameter) {
  const auto adamw = make_update_rule({});
  Ledger ledger;
  OwnedShard rows{"w", "", {10, 3}, {4, 2}, 3, 5, at::zeros({6}, at::kBFloat16)};
  const auto states = states_of(ledger, {rows}, {{adamw.get(), MomentType::fp32, Master::stochastic}});
  const UpdatePiece piece = states[0].piece(rows);
  EXPECT_EQ(piece.first, 12);
  EXPECT_EQ(piece.master, Master::stochastic);
  EXPECT_NE(piece.key, 0u);
  EXPECT_EQ(piece.key, states_of(ledger, {rows}, {{}})[0].key);
}

TEST(ShardStates, EightBitsGoWhereShardsAreWholeBlocks) {
  const std::vector<std::string> none, names = {"*embed*"};
  EXPECT_EQ(fit_of_moments(shard("w", "", 16, 256), none), MomentFit::eight_bits);
  EXPECT_EQ(fit_of_moments(shard("w", "", 15, 256), none), MomentFit::small_or_named);
  EXPECT_EQ(fit_of_moments(shard("embed.weight", "", 16, 256), names), MomentFit::small_or_named);
  EXPECT_EQ(fit_of_moments(shard("w", "", 100, 100, at::kFloat, 3), none), MomentFit::cuts_blocks);
  EXPECT_EQ(fit_of_moments(shard("w", "", 100, 100), none), MomentFit::eight_bits);
}

TEST(ShardStates, MastersAreOfTypesThatCanHaveThem) {
  EXPECT_EQ(master_for(shard("w", "", 1, 1), Master::split), Master::nearest);
  EXPECT_EQ(master_for(shard("w", "", 1, 1, at::kBFloat16), Master::split), Master::split);
  EXPECT_EQ(master_for(shard("w", "", 1, 1, at::kHalf), Master::fp32), Master::fp32);
  for (const Master master : {Master::split, Master::stochastic})
    EXPECT_THROW(master_for(shard("w", "", 1, 1, at::kHalf), master), ConfigError);
}

}  // namespace
}  // namespace sherd::testing
