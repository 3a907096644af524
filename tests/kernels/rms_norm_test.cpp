#include "sherd/kernels/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kHalfUnit;
using testing::kSizes;
using testing::random_floats;

constexpr double kEps = 1e-5;

struct Normed {
  NormShape shape;
  std::vector<float> x, weight, gradient, y, inverse, dx, dweight;

  Normed(int64_t rows, int64_t dim)
      : shape{rows, dim},
        x(random_floats(rows * dim, 1, 3.0f)),
        weight(random_floats(dim, 2)),
        gradient(random_floats(rows * dim, 3)),
        y(x.size()),
        inverse(static_cast<size_t>(rows)),
        dx(x.size()),
        dweight(weight.size()) {}

  void compute() { compute(0, shape.rows); }
  void compute(int64_t first, int64_t rows) {
    const int64_t i = first * shape.dim;
    rms_norm({rows, shape.dim}, kEps, x.data() + i, weight.data(), y.data() + i, inverse.data() + first);
    rms_norm_backward({rows, shape.dim}, x.data() + i, weight.data(), inverse.data() + first, gradient.data() + i,
                      {dx.data() + i, dweight.data()});
  }
};

TEST(RmsNorm, IsWithinAFewUnitsOfTheFormula) {
  for (const int64_t dim : kSizes) {
    if (dim == 0) continue;
    Normed test(3, dim);
    test.compute();
    std::vector<double> dweight(test.weight.size()), terms(test.weight.size());
    for (size_t row = 0; row < 3; ++row) {
      const size_t n = static_cast<size_t>(dim), begin = row * n;
      double squares = 0, along = 0;
      for (size_t i = 0; i < n; ++i) {
        const double x = test.x[begin + i];
        squares += x * x;
        along += x * test.weight[i] * test.gradient[begin + i];
      }
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(dim) + kEps);
      double size = 0;  // of the terms of `along`: where it cancels, their roundings stay
      for (size_t i = 0; i < n; ++i)
        size += std::abs(double{test.x[begin + i]} * test.weight[i] * test.gradient[begin + i]);
      const double cube = inverse * inverse * inverse / static_cast<double>(dim);
      EXPECT_NEAR(test.inverse[row], inverse, kHalfUnit * inverse);
      for (size_t i = 0; i < n; ++i) {
        const double x = test.x[begin + i], w = test.weight[i], dy = test.gradient[begin + i];
        EXPECT_NEAR(test.y[begin + i], w * x * inverse, 4 * kHalfUnit * std::abs(w * x * inverse));
        EXPECT_NEAR(test.dx[begin + i], inverse * w * dy - x * cube * along,
                    6 * kHalfUnit * (std::abs(inverse * w * dy) + std::abs(x) * cube * size));
        dweight[i] += dy * x * inverse;
        terms[i] += std::abs(dy * x * inverse);
      }
    }
    for (size_t i = 0; i < dweight.size(); ++i) EXPECT_NEAR(test.dweight[i], dweight[i], 8 * kHalfUnit * terms[i]);
  }
}

TEST(RmsNorm, GivesTheSameBitsOnEveryTargetAndHoweverRowsAreSplit) {
  for (const int64_t dim : kSizes) {
    if (dim == 0) continue;
    Normed expected(5, dim);
    expected.compute();
    for_each_target([&] {
      Normed test(5, dim);
      test.compute(0, 2);
      test.compute(2, 3);
      EXPECT_EQ(bits(test.y), bits(expected.y));
      EXPECT_EQ(bits(test.inverse), bits(expected.inverse));
      EXPECT_EQ(bits(test.dx), bits(expected.dx));
      EXPECT_EQ(bits(test.dweight), bits(expected.dweight));
    });
  }
}

TEST(RmsNorm, WorksInPlaceAndWithoutTheWeightsGradient) {
  Normed expected(4, 67);
  expected.compute();
  Normed test(4, 67);
  rms_norm_backward(test.shape, test.x.data(), test.weight.data(), expected.inverse.data(), test.gradient.data(),
                    {test.gradient.data(), nullptr});
  EXPECT_EQ(bits(test.gradient), bits(expected.dx));
  rms_norm(test.shape, kEps, test.x.data(), test.weight.data(), test.x.data(), test.inverse.data());
  EXPECT_EQ(bits(test.x), bits(expected.y));
}

TEST(RmsNorm, SumsWhatFp32CannotSquare) {
  const std::vector<float> x(33, 1e30f), weight(33, 1.0f);
  std::vector<float> y(33);
  float inverse = 0;
  rms_norm({1, 33}, 0.0, x.data(), weight.data(), y.data(), &inverse);
  for (const float value : y) EXPECT_NEAR(value, 1.0f, 1e-6f);
}

}  // namespace
}  // namespace sherd::kernels
