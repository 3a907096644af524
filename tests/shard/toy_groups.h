// Four parameter groups of awkward shapes, with values and gradients that every rank can work out for itself.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "sherd/shard/store.h"
#include "tests/support/ranks.h"

namespace sherd::testing {

/// A transport and a number of ranks.
struct RankCase {
  Kind kind;
  int ranks;
};

inline void PrintTo(const RankCase& c, std::ostream* out) {  // NOLINT: GoogleTest's name
  *out << name_of(c.kind) << " x " << c.ranks;
}

inline std::vector<RankCase> rank_cases() {
  std::vector<RankCase> all{{Kind::threads, 1}};
  for (const Kind kind : kKinds)
    for (const int ranks : {2, 3, 4}) all.push_back({kind, ranks});
  return all;
}

inline std::string rank_case_name(const ::testing::TestParamInfo<RankCase>& info) {
  return fmt::format("{}_{}", name_of(info.param.kind), info.param.ranks);
}

/// Groups 0 and 3 are alike, 1 has a parameter without dimensions, 2 is the largest.
inline std::vector<std::vector<NamedShape>> toy_shapes() {
  return {{{"a.weight", {7, 3}}, {"a.bias", {5}}},
          {{"b.scale", {}}, {"b.weight", {2, 2, 5}}, {"b.bias", {1}}},
          {{"c.weight", {33, 17}}, {"c.bias", {2}}},
          {{"d.weight", {7, 3}}, {"d.bias", {5}}}};
}

inline StorePlan toy_plan(const Strategy& strategy, int ranks, SlotKind slot, size_t groups = 4) {
  StorePlan plan{strategy, Summing::apart, at::kCPU, {}};
  // Strategies that hold whole gradients have a slot for each group.
  if (strategy.gradients == Spread::whole) slot = SlotKind::dedicated;
  const auto shapes = toy_shapes();
  for (size_t g = 0; g < groups; ++g) {
    plan.groups.push_back({.layout = lay_out("unit" + std::to_string(g), shapes[g], ranks),
                           .slot = slot,
                           .parameters = strategy.parameters});
    plan.groups.back().set_roles(Roles(shapes[g].size(), Role::awaited));
  }
  return plan;
}

/// What parameter p of group g holds after `version` updates: a different number everywhere.
inline at::Tensor toy_values(const GroupLayout& layout, size_t p, int version) {
  at::Tensor values = at::zeros({layout.parameters[p].elements()});
  float* data = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i)
    data[i] = static_cast<float>(100000 * version + 10000 * static_cast<int>(p) + layout.unit.back() * 10 + i);
  return values;
}

/// Rank `rank`'s gradient of it in a round; sums of these depend on the order of addition.
inline at::Tensor toy_gradient(const GroupLayout& layout, size_t p, int rank, int round) {
  at::Tensor values = at::zeros({layout.parameters[p].elements()});
  float* data = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    const double seed = 1.7 * static_cast<double>(i) + 31.1 * rank + 7.3 * round + 3.9 * static_cast<double>(p) +
                        0.7 * layout.unit.back();
    data[i] = static_cast<float>(std::sin(seed) * std::exp(3 * std::cos(2.3 * seed)));
  }
  return values;
}

/// The canonical sum, written down as its definition: split at the largest power of two below the number of sources.
inline at::Tensor tree(const std::vector<at::Tensor>& sources) {
  if (sources.size() == 1) return sources[0];
  size_t half = 1;
  while (2 * half < sources.size()) half *= 2;
  const auto middle = sources.begin() + static_cast<std::ptrdiff_t>(half);
  return tree({sources.begin(), middle}) + tree({middle, sources.end()});
}

/// The sum over all ranks of rounds [first, last), each round summed over the ranks first.
inline at::Tensor toy_sum(const GroupLayout& layout, size_t p, int first, int last) {
  at::Tensor sum;
  for (int round = first; round < last; ++round) {
    std::vector<at::Tensor> sources;
    for (int r = 0; r < layout.ranks; ++r) sources.push_back(toy_gradient(layout, p, r, round));
    sum = sum.defined() ? sum + tree(sources) : tree(sources);
  }
  return sum;
}

/// Elements of rank r's rows of parameter p in the whole parameter: [first, first + count).
inline Rows elements_of(const GroupLayout& layout, size_t p, int r) {
  const Rows rows = layout.rows(p, r);
  return {rows.first * layout.parameters[p].row_elements, rows.count * layout.parameters[p].row_elements};
}

/// Puts a rank's gradients of a round into a group's slot.
inline void fill_slot(const at::Tensor& slot, const GroupLayout& layout, int rank, int round) {
  for (size_t p = 0; p < layout.parameters.size(); ++p) {
    const at::Tensor gradient = toy_gradient(layout, p, rank, round);
    for (int r = 0; r < layout.ranks; ++r) {
      const Rows part = elements_of(layout, p, r);
      slot.narrow(0, r * layout.shard_elements + layout.parameters[p].shard_offset, part.count)
          .copy_(gradient.narrow(0, part.first, part.count));
    }
  }
}

/// Writes this rank's rows of one group.
inline void write_rows(Store& store, const GroupPlan& plan, size_t g, int version) {
  for (const int owner : store.owned()) {
    for (size_t p = 0; p < plan.layout.parameters.size(); ++p) {
      const Rows own = elements_of(plan.layout, p, owner);
      store.rows(g, p, owner).copy_(toy_values(plan.layout, p, version).narrow(0, own.first, own.count));
    }
  }
}

inline void expect_whole(const at::Tensor& whole, const GroupLayout& layout, int version) {
  ASSERT_EQ(whole.numel(), layout.whole_elements);
  for (size_t p = 0; p < layout.parameters.size(); ++p)
    EXPECT_TRUE(at::equal(whole.narrow(0, layout.parameters[p].offset, layout.parameters[p].elements()),
                          toy_values(layout, p, version)))
        << layout.parameters[p].fqn << " version " << version;
}

/// The group's reduced gradient is `expected` (whole parameters) in this rank's rows, and zero in the padding.
inline void expect_gradient(Store& store, const GroupLayout& layout, size_t g,
                            const std::vector<at::Tensor>& expected) {
  const at::Tensor gradient = store.gradient(g);
  ASSERT_EQ(gradient.numel(), static_cast<int64_t>(store.owned().size()) * layout.shard_elements);
  at::Tensor wanted = at::zeros_like(gradient);
  for (size_t k = 0; k < store.owned().size(); ++k) {
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const Rows own = elements_of(layout, p, store.owned()[k]);
      wanted.narrow(0, static_cast<int64_t>(k) * layout.shard_elements + layout.parameters[p].shard_offset, own.count)
          .copy_(expected[p].narrow(0, own.first, own.count));
    }
  }
  EXPECT_TRUE(at::equal(gradient, wanted)) << "gradient of " << layout.unit;
}

inline void expect_toy_sum(Store& store, const GroupLayout& layout, size_t g, int first, int last) {
  std::vector<at::Tensor> expected;
  for (size_t p = 0; p < layout.parameters.size(); ++p) expected.push_back(toy_sum(layout, p, first, last));
  expect_gradient(store, layout, g, expected);
}

}  // namespace sherd::testing
