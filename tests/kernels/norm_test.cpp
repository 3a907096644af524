#include "sherd/kernels/norm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::for_each_target;
using testing::kSizes;
using testing::random_floats;

double reference(const float* x, int64_t n) {
  std::array<double, 32> lane{};
  for (int64_t i = 0; i < n; ++i) lane[static_cast<size_t>(i % 32)] += static_cast<double>(x[i]) * x[i];
  for (size_t half = 16; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

TEST(SumOfSquares, GivesTheReferenceBitsOnEveryTarget) {
  for (const int64_t n : kSizes) {
    for (const int64_t offset : {0, 1, 5}) {
      SCOPED_TRACE(n);
      const std::vector<float> x = random_floats(n + offset, 4);
      const double expected = reference(x.data() + offset, n);
      for_each_target([&] { EXPECT_EQ(sum_of_squares(x.data() + offset, n), expected); });
    }
  }
}

TEST(SumOfSquares, OfFp64HasTheSameOrder) {
  for (const int64_t n : kSizes) {
    const std::vector<float> x = random_floats(n, 8);
    const std::vector<double> wide(x.begin(), x.end());
    EXPECT_EQ(sum_of_squares(wide.data(), n), sum_of_squares(x.data(), n)) << n;
  }
}

TEST(SumOfSquares, IsAccurate) {
  const std::vector<float> x = random_floats(100'003, 6);
  long double exact = 0;
  for (const float value : x) exact += static_cast<long double>(value) * value;
  EXPECT_NEAR(sum_of_squares(x.data(), 100'003) / static_cast<double>(exact), 1.0, 1e-14);
}

TEST(SumOfSquares, NeitherOverflowsNorUnderflowsWhereFp32Would) {
  const std::vector<float> large(40, 3e38f), small(40, 1e-45f);
  EXPECT_DOUBLE_EQ(sum_of_squares(large.data(), 40), 40.0 * 3e38f * static_cast<double>(3e38f));
  EXPECT_DOUBLE_EQ(sum_of_squares(small.data(), 40), 40.0 * 1e-45f * static_cast<double>(1e-45f));
}

TEST(SumOfSquares, LetsInfinityAndNanThrough) {
  for (const size_t at : {0, 31, 32, 40}) {
    for_each_target([&] {
      std::vector<float> x(41, 1.0f);
      x[at] = -std::numeric_limits<float>::infinity();
      EXPECT_EQ(sum_of_squares(x.data(), 41), std::numeric_limits<double>::infinity());
      x[at] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_TRUE(std::isnan(sum_of_squares(x.data(), 41)));
    });
  }
}

}  // namespace
}  // namespace sherd::kernels
