#include "sherd/kernels/silu.h"

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

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The error of got in units in the last place of the exact value.
double units_off(float got, double exact) {
  const float near = static_cast<float>(exact);
  if (std::isinf(near) || std::isinf(got)) return near == got ? 0 : HUGE_VAL;
  return std::abs(got - exact) / (static_cast<double>(std::nextafter(near, kInfinity)) - near);
}

std::vector<float> exponentials(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  exponential(static_cast<int64_t>(x.size()), x.data(), out.data());
  return out;
}

TEST(Exponential, IsWithinOneUnitEverywhere) {
  for (const auto& [from, to] : {std::pair{-104.0, 88.72}, {-1.0, 1.0}, {-1e-6, 1e-6}}) {
    std::vector<float> x;
    constexpr int kSteps = 400'000;
    for (int i = 0; i <= kSteps; ++i) x.push_back(static_cast<float>(from + (to - from) * i / kSteps));
    const auto got = exponentials(x);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i)
      worst = std::max(worst, units_off(got[i], std::exp(static_cast<double>(x[i]))));
    EXPECT_LE(worst, 1.0) << from << " to " << to;
  }
}

TEST(Exponential, HasTheRightEnds) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for_each_target([&] {
    const auto got = exponentials({0.0f, -0.0f, 88.8f, 1e30f, kInfinity, -104.5f, -1e30f, -kInfinity, nan});
    EXPECT_EQ(got[0], 1.0f);
    EXPECT_EQ(got[1], 1.0f);
    for (const size_t i : {2, 3, 4}) EXPECT_EQ(got[i], kInfinity);
    for (const size_t i : {5, 6, 7}) EXPECT_EQ(got[i], 0.0f);
    EXPECT_TRUE(std::isnan(got[8]));
  });
}

struct Product {
  std::vector<float> gate, up, gradient, out, d_gate, d_up;

  explicit Product(int64_t n, float scale = 4.0f)
      : gate(random_floats(n, 1, scale)), up(random_floats(n, 2)), gradient(random_floats(n, 3)) {
    out.resize(gate.size());
    d_gate = d_up = out;
  }

  void compute() { compute(0, static_cast<int64_t>(gate.size())); }
  void compute(int64_t i, int64_t n) {
    silu_product(n, gate.data() + i, up.data() + i, out.data() + i);
    silu_product_backward(n, gate.data() + i, up.data() + i, gradient.data() + i, d_gate.data() + i, d_up.data() + i);
  }
};

void expect_same_bits(const Product& got, const Product& expected) {
  EXPECT_EQ(bits(got.out), bits(expected.out));
  EXPECT_EQ(bits(got.d_gate), bits(expected.d_gate));
  EXPECT_EQ(bits(got.d_up), bits(expected.d_up));
}

TEST(SiluProduct, IsWithinAFewUnitsOfTheFormula) {
  for (const int64_t n : kSizes) {
    Product test(n);
    test.compute();
    for (size_t i = 0; i < test.gate.size(); ++i) {
      const double g = test.gate[i], u = test.up[i], dy = test.gradient[i], s = 1 / (1 + std::exp(-g));
      EXPECT_NEAR(test.out[i], g * s * u, 8 * kHalfUnit * std::abs(g * s * u));
      EXPECT_NEAR(test.d_up[i], dy * g * s, 8 * kHalfUnit * std::abs(dy * g * s));
      // 1 + g (1 - s) cancels for g near -1.28: its error is relative to both terms. 1 - s itself loses what s rounds.
      const double terms = std::abs(dy * u) * s * (1 + std::abs(g) * 2);
      EXPECT_NEAR(test.d_gate[i], dy * u * s * (1 + g * (1 - s)), 8 * kHalfUnit * terms);
    }
  }
}

TEST(SiluProduct, GivesTheSameBitsOnEveryTargetAndHoweverItIsSplit) {
  for (const int64_t n : kSizes) {
    Product expected(n);
    expected.compute();
    for_each_target([&] {
      Product test(n);
      for (int64_t i = 0; i < n; i += 37) test.compute(i, std::min<int64_t>(37, n - i));
      expect_same_bits(test, expected);
    });
  }
}

TEST(SiluProduct, MayOverwriteItsInputs) {
  Product expected(1000);
  expected.compute();
  Product test(1000);
  silu_product(1000, test.gate.data(), test.up.data(), test.up.data());
  EXPECT_EQ(bits(test.up), bits(expected.out));
  test = Product(1000);
  silu_product_backward(1000, test.gate.data(), test.up.data(), test.gradient.data(), test.gate.data(), test.up.data());
  EXPECT_EQ(bits(test.gate), bits(expected.d_gate));
  EXPECT_EQ(bits(test.up), bits(expected.d_up));
}

TEST(SiluProduct, StaysFiniteForLargeGates) {
  Product test(4);
  test.gate = {-200.0f, 200.0f, -90.0f, 90.0f};
  test.up = test.gradient = {1.0f, 1.0f, 1.0f, 1.0f};
  test.compute();
  EXPECT_EQ(test.out, (std::vector<float>{-0.0f, 200.0f, -0.0f, 90.0f}));
  EXPECT_EQ(test.d_up, test.out);
  EXPECT_EQ(test.d_gate, (std::vector<float>{0.0f, 1.0f, 0.0f, 1.0f}));
}

}  // namespace
}  // namespace sherd::kernels
