#include "sherd/base/exact_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace sherd {
namespace {

double sum_of(const std::vector<double>& values) {
  ExactSum sum;
  for (const double value : values) sum.add(value);
  return sum.value();
}

// Of every size that fp64 has, denormals among them.
std::vector<double> random_values(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> mantissa(1, 2);
  std::uniform_int_distribution<int> exponent(-1074, 1000);
  std::vector<double> values(n);
  for (double& value : values) value = std::ldexp(mantissa(random), exponent(random));
  return values;
}

TEST(ExactSum, LosesNothingThatIsSmall) {
  const double epsilon = std::numeric_limits<double>::epsilon();
  EXPECT_EQ(1 + epsilon / 2 + epsilon / 2, 1.0);
  EXPECT_EQ(sum_of({1, epsilon / 2, epsilon / 2}), 1 + epsilon);
  EXPECT_EQ(sum_of({0x1p-1074, 0x1p-1074}), 0x1p-1073);
  EXPECT_EQ(sum_of({0x1p600, 0x1p-600}), 0x1p600);
  EXPECT_EQ(sum_of({}), 0.0);
  EXPECT_EQ(sum_of({0.0, -0.0, 3.5}), 3.5);
}

TEST(ExactSum, HasOneValueInAnyOrderAndGrouping) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<double> values = random_values(500, seed);
    const double expected = sum_of(values);
    std::mt19937_64 random(seed);
    for (int turn = 0; turn < 5; ++turn) {
      std::shuffle(values.begin(), values.end(), random);
      EXPECT_EQ(sum_of(values), expected);
      ExactSum together;
      const size_t pieces = random() % 7 + 1;
      for (size_t piece = 0; piece < pieces; ++piece) {
        ExactSum part;
        for (size_t i = piece; i < values.size(); i += pieces) part.add(values[i]);
        together.add_digits(part.digits());
      }
      EXPECT_EQ(together.value(), expected);
    }
  }
}

TEST(ExactSum, IsWhatIntegersGive) {
  std::mt19937_64 random(7);
  for (int turn = 0; turn < 100; ++turn) {
    uint64_t expected = 0;
    std::vector<double> values;
    for (int i = 0; i < 1000; ++i) {
      const uint64_t value = random() >> (random() % 40 + 22);
      expected += value;
      values.push_back(std::ldexp(static_cast<double>(value), turn * 9 - 500));
    }
    ASSERT_LT(expected, uint64_t{1} << 53);
    EXPECT_EQ(sum_of(values), std::ldexp(static_cast<double>(expected), turn * 9 - 500));
  }
}

TEST(ExactSum, IsWithinAnUlpOfTheLongSum) {
  std::mt19937_64 random(3);
  std::vector<double> values(10'000);
  long double expected = 0;
  for (double& value : values) {
    value = std::ldexp(static_cast<double>(random() >> 11), -53);
    expected += value;
  }
  EXPECT_NEAR(sum_of(values), static_cast<double>(expected), 1e-12);
}

TEST(ExactSum, TakesTheLargestAndWhatIsNotFinite) {
  const double most = std::numeric_limits<double>::max(), infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(sum_of({most}), most);
  EXPECT_EQ(sum_of({most, most}), infinity);
  EXPECT_EQ(sum_of({1, infinity, 1}), infinity);
  EXPECT_TRUE(std::isnan(sum_of({1, std::numeric_limits<double>::quiet_NaN()})));
  ExactSum a, b;
  a.add(infinity);
  b.add_digits(a.digits());
  EXPECT_EQ(b.value(), infinity);
}

}  // namespace
}  // namespace sherd
