#include "sherd/shard/reduction.h"

#include <ATen/ops/full.h>
#include <ATen/ops/square.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <limits>
#include <set>

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

// 16-bit sources are summed in fp32, whatever becomes of the sum.
TEST(CanonicalSum, Of16BitsIsTheSumOfTheirFp32Values) {
  for (const at::Device device : test_devices()) {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      for (int count = 1; count <= 5; ++count) {
        for (const int64_t n : {0, 1, 16, 1001, 3000}) {
          SCOPED_TRACE(fmt::format("{} sources of {} on {}", count, n, device.str()));
          std::vector<at::Tensor> sources, wide;
          for (const auto& source : sources_of(count, n, device)) {
            sources.push_back(source.to(type));
            wide.push_back(sources.back().to(at::kFloat));
          }
          const at::Tensor sum = at::full({n}, 5, wide[0].options());
          canonical_sum(sources, sum, Round::later, 3);
          EXPECT_TRUE(at::equal(sum, 5 + tree(wide) / 3));
          canonical_sum(sources, sum, Round::first);
          EXPECT_TRUE(at::equal(sum, tree(wide)));
          canonical_sum(sources, sources[0], Round::first);
          EXPECT_TRUE(at::equal(sources[0], tree(wide).to(type)));
        }
      }
    }
  }
}

TEST(CanonicalSum, OfFp64AndComplexNumbersIsTheTreeInTheirTypes) {
  for (const at::Device device : test_devices()) {
    for (const at::ScalarType type : {at::kDouble, at::kComplexFloat, at::kComplexDouble}) {
      for (int count = 1; count <= 5; ++count) {
        std::vector<at::Tensor> sources;
        for (const auto& source : sources_of(count, 37, device)) {
          sources.push_back(source.to(type) / 3.0);
          if (sources.back().is_complex()) sources.back() *= c10::complex<double>(0.6, 1.7);
        }
        SCOPED_TRACE(fmt::format("{} sources of {} on {}", count, toString(type), device.str()));
        const at::Tensor sum = at::full({37}, 5, sources[0].options());
        canonical_sum(sources, sum, Round::later);
        EXPECT_TRUE(at::equal(sum, 5 + tree(sources)));
        canonical_sum(sources, sum, Round::first);
        EXPECT_TRUE(at::equal(sum, tree(sources)));
        canonical_sum(sources, sum, Round::first, 4);
        EXPECT_TRUE(at::equal(sum, tree(sources) / 4.0));
      }
    }
  }
}

TEST(AddSquares, OfFp64AndComplexNumbers) {
  for (const at::Device device : test_devices()) {
    const at::Tensor values = sources_of(1, 35, device)[0].to(at::kDouble) / 3;
    ExactSum real, complex;
    add_row_squares(values, 7, real);
    EXPECT_DOUBLE_EQ(real.value(), values.square().sum().item<double>());
    add_row_squares(values.to(at::kComplexDouble) * c10::complex<double>(3, 4), 7, complex);
    EXPECT_NEAR(complex.value(), 25 * real.value(), 1e-12 * complex.value());
  }
}

TEST(AddSquares, Of16BitsIsThatOfTheirFp32Values) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    for (const int64_t width : {1, 3, 1000, 100000}) {
      const at::Tensor values = sources_of(1, 3 * width, at::kCPU)[0].to(type);
      ExactSum narrow, wide;
      add_row_squares(values, width, narrow);
      add_row_squares(values.to(at::kFloat), width, wide);
      EXPECT_EQ(narrow.value(), wide.value());
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

double squares_of(const at::Tensor& values) {
  ExactSum sum;
  add_squares(lay_out("u", {{"p", {values.numel(), 1}}}, 1), 0, values, sum);
  return sum.value();
}

TEST(AddSquares, IsInDoublePrecision) {
  for (const at::Device device : test_devices()) {
    EXPECT_EQ(squares_of(at::zeros({0}, device)), 0);
    EXPECT_EQ(squares_of(at::full({3}, 4097.0, device)), 3 * 4097.0 * 4097.0);  // not exact in fp32
    EXPECT_EQ(squares_of(at::full({5}, 1e30, device)), 5 * std::pow(static_cast<double>(1e30f), 2));
    EXPECT_EQ(squares_of(at::full({1}, std::numeric_limits<float>::infinity(), device)), HUGE_VAL);
  }
}

TEST(AddSquares, HasTheSameBitsForAnyNumberOfRanks) {
  for (const at::Device device : test_devices()) {
    auto shapes = toy_shapes();
    shapes.push_back({{"long.weight", {13, 1001}}, {"long.bias", {4000}}});
    for (const auto& group : shapes) {
      std::set<double> totals;
      double expected = 0;
      for (const int ranks : {1, 2, 3, 4, 5, 16}) {
        const GroupLayout layout = lay_out("u", group, ranks);
        ExactSum total;
        expected = 0;
        for (int r = 0; r < ranks; ++r) {
          at::Tensor piece = at::full({layout.shard_elements}, 9.0);  // what lies in the padding does not count
          for (size_t p = 0; p < group.size(); ++p) {
            const at::Tensor whole = toy_gradient(layout, p, 0, 0);
            const Rows own = elements_of(layout, p, r);
            piece.narrow(0, layout.parameters[p].shard_offset, own.count).copy_(whole.narrow(0, own.first, own.count));
            if (r == 0) expected += whole.to(at::kDouble).square().sum().item<double>();
          }
          ExactSum mine;
          add_squares(layout, r, piece.to(device), mine);
          total.add_digits(mine.digits());
        }
        totals.insert(total.value());
      }
      EXPECT_EQ(totals.size(), 1U) << group[0].fqn;
      EXPECT_NEAR(*totals.begin() / expected, 1, 1e-14) << group[0].fqn;
    }
  }
}

}  // namespace
}  // namespace sherd::testing
