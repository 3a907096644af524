#include "sherd/kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kHalfUnit;
using testing::kSizes;
using testing::random_floats;

constexpr int64_t kIgnored = -100;

struct Logits {
  int64_t rows, vocab, stride;
  std::vector<float> values;
  std::vector<int64_t> targets;
  std::vector<double> losses;

  // Every third target is ignored.
  Logits(int64_t rows, int64_t vocab, int64_t padding)
      : rows(rows), vocab(vocab), stride(vocab + padding), values(random_floats(rows * stride, 7, 5.0f)) {
    for (int64_t row = 0; row < rows; ++row) targets.push_back(row % 3 == 2 ? kIgnored : (row * 31 + 5) % vocab);
    losses.resize(static_cast<size_t>(rows));
  }

  LogitRows shape(int64_t first, int64_t count) const {
    return {count, vocab, stride, targets.data() + first, kIgnored};
  }
  void gradient(double scale) { gradient(scale, 0, rows); }
  void gradient(double scale, int64_t first, int64_t count) {
    cross_entropy_gradient(shape(first, count), scale, values.data() + first * stride, losses.data() + first);
  }
};

TEST(CrossEntropyKernel, IsTheFormula) {
  constexpr double kScale = 0.37;
  for (const int64_t vocab : kSizes) {
    if (vocab == 0) continue;
    SCOPED_TRACE(vocab);
    const Logits start(4, vocab, 3);
    Logits test = start;
    test.gradient(kScale);
    for (int64_t row = 0; row < 4; ++row) {
      const size_t begin = static_cast<size_t>(row * start.stride), n = static_cast<size_t>(vocab);
      const int64_t target = start.targets[static_cast<size_t>(row)];
      double most = -HUGE_VAL, sum = 0;
      for (size_t i = 0; i < n; ++i) most = std::max(most, double{start.values[begin + i]});
      for (size_t i = 0; i < n; ++i) sum += std::exp(start.values[begin + i] - most);
      const double loss = test.losses[static_cast<size_t>(row)];
      if (target == kIgnored) {
        EXPECT_EQ(loss, 0.0);
        for (size_t i = 0; i < n; ++i) EXPECT_EQ(test.values[begin + i], 0.0f);
      } else {
        const double exact = std::log(sum) + most - start.values[begin + static_cast<size_t>(target)];
        EXPECT_NEAR(loss, exact, 8 * kHalfUnit + 1e-12 * exact);
        for (size_t i = 0; i < n; ++i) {
          const double p = kScale * std::exp(start.values[begin + i] - most) / sum;
          const double expected = p - (static_cast<int64_t>(i) == target ? kScale : 0.0);
          // Beside the roundings: what the difference to the largest logit loses, which is up to 40.
          EXPECT_NEAR(test.values[begin + i], expected, (10 + 40) * kHalfUnit * p + 2 * kHalfUnit * std::abs(expected));
        }
      }
      for (int64_t i = vocab; i < start.stride; ++i)  // what lies between the rows is left alone
        EXPECT_EQ(test.values[begin + static_cast<size_t>(i)], start.values[begin + static_cast<size_t>(i)]);
    }
  }
}

TEST(CrossEntropyKernel, GivesTheSameBitsOnEveryTargetAndHoweverRowsAreSplit) {
  for (const int64_t vocab : kSizes) {
    if (vocab == 0) continue;
    Logits expected(5, vocab, 1);
    expected.gradient(1.5);
    for_each_target([&] {
      Logits test(5, vocab, 1);
      cross_entropy(test.shape(0, 5), test.values.data(), test.losses.data());
      EXPECT_EQ(test.losses, expected.losses);
      EXPECT_EQ(bits(test.values), bits(Logits(5, vocab, 1).values));
      test.gradient(1.5, 0, 2);
      test.gradient(1.5, 2, 3);
      EXPECT_EQ(test.losses, expected.losses);
      EXPECT_EQ(bits(test.values), bits(expected.values));
    });
  }
}

TEST(CrossEntropyKernel, TakesLargeLogitsAndLetsNanThrough) {
  Logits test(1, 40, 0);
  for (float& value : test.values) value *= 1e30f;
  test.targets[0] = std::max_element(test.values.begin(), test.values.end()) - test.values.begin();
  test.gradient(1.0);
  EXPECT_EQ(test.losses[0], 0.0);
  for (const float value : test.values) EXPECT_EQ(value, 0.0f);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const size_t at : {0, 33, 39}) {
      for_each_target([&] {
        Logits with_bad(1, 40, 0);
        with_bad.values[at] = bad;
        with_bad.gradient(1.0);
        EXPECT_TRUE(std::isnan(with_bad.losses[0])) << at;
      });
    }
  }
}

}  // namespace
}  // namespace sherd::kernels
