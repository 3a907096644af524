#include "sherd/shard/reduction.h"

#include <ATen/ops/full.h>

#include "tests/shard/toy_groups.h"

namespace sherd::testing {
namespace {

std::vector<at::Tensor> sources_of(int count, int64_t n, at::Device device) {
  const GroupLayout layout = lay_out("u", {{"p", {n}}}, 1);
  std::vector<at::Tensor> sources;
  for (int k = 0; k < count; ++k) sources.push_back(toy_gradient(layout, 0, k, 0).to(device));
  return sources;
}

// Written out by hand.
at::Tensor expected_sum(const std::vector<at::Tensor>& s) {
  switch (s.size()) {
    case 1:
      return s[0];
    case 2:
      return s[0] + s[1];
    case 3:
      return (s[0] + s[1]) + s[2];
    case 4:
      return (s[0] + s[1]) + (s[2] + s[3]);
    case 5:
      return ((s[0] + s[1]) + (s[2] + s[3])) + s[4];
    case 6:
      return ((s[0] + s[1]) + (s[2] + s[3])) + (s[4] + s[5]);
    case 7:
      return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + s[6]);
    default:
      return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }
}

TEST(CanonicalSum, IsTheTreeOnEveryDevice) {
  for (const at::Device device : test_devices()) {
    for (int count = 1; count <= 8; ++count) {
      for (const int64_t n : {0, 1, 7, 16, 1001}) {
        SCOPED_TRACE(fmt::format("{} sources of {} on {}", count, n, device.str()));
        const auto sources = sources_of(count, n, device);
        const at::Tensor out = at::full({n}, 5, sources[0].options());
        canonical_sum(sources, out, Round::later);
        EXPECT_TRUE(at::equal(out, 5 + expected_sum(sources)));
        canonical_sum(sources, out, Round::first);
        EXPECT_TRUE(at::equal(out, expected_sum(sources)));
        EXPECT_TRUE(at::equal(out, tree(sources)));
      }
    }
  }
}

TEST(CanonicalSum, OutMayBeOneOfTheSources) {
  for (const at::Device device : test_devices()) {
    for (size_t alias = 0; alias < 5; ++alias) {
      auto sources = sources_of(5, 37, device);
      const at::Tensor expected = expected_sum(sources), before = sources[alias].clone();
      canonical_sum(sources, sources[alias], Round::first);
      EXPECT_TRUE(at::equal(sources[alias], expected)) << alias;
    }
  }
}

TEST(ZeroPadding, LeavesWhatAParameterCoversAndNothingElse) {
  for (const int ranks : {1, 2, 3, 4, 7}) {
    for (const auto& shapes : toy_shapes()) {
      const GroupLayout layout = lay_out("u", shapes, ranks);
      const at::Tensor buffer = at::full({ranks * layout.shard_elements}, 1.0f);
      at::Tensor expected = at::zeros_like(buffer);
      for (int r = 0; r < ranks; ++r)
        for (size_t p = 0; p < shapes.size(); ++p)
          expected
              .narrow(0, r * layout.shard_elements + layout.parameters[p].shard_offset, elements_of(layout, p, r).count)
              .fill_(1);
      zero_padding(layout, buffer);
      EXPECT_TRUE(at::equal(buffer, expected)) << shapes[0].fqn << " on " << ranks;
    }
  }
}

TEST(SumOfSquares, IsInDoublePrecision) {
  for (const at::Device device : test_devices()) {
    EXPECT_EQ(sum_of_squares(at::zeros({0}, device)), 0);
    EXPECT_EQ(sum_of_squares(at::full({3}, 4097.0, device)), 3 * 4097.0 * 4097.0);  // not exact in fp32
    EXPECT_EQ(sum_of_squares(at::full({5}, 1e30, device)), 5 * std::pow(static_cast<double>(1e30f), 2));
    const at::Tensor values = sources_of(1, 1001, device)[0];
    double expected = 0;
    const at::Tensor on_cpu = values.cpu();
    for (int64_t i = 0; i < 1001; ++i) expected += std::pow(static_cast<double>(on_cpu.data_ptr<float>()[i]), 2);
    EXPECT_NEAR(sum_of_squares(values), expected, 1e-12 * expected);
  }
}

}  // namespace
}  // namespace sherd::testing
