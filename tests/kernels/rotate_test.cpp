#include "sherd/kernels/rotate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::random_floats;

struct Rotated {
  Heads shape;
  int64_t positions;
  std::vector<float> cosines, sines, x;

  Rotated(const Heads& heads, int64_t positions) : shape(heads), positions(positions) {
    for (int64_t i = 0; i < positions * heads.half; ++i) {
      cosines.push_back(static_cast<float>(std::cos(0.1 * static_cast<double>(i))));
      sines.push_back(static_cast<float>(std::sin(0.1 * static_cast<double>(i))));
    }
    x = random_floats(heads.tokens * heads.heads * 2 * heads.half, 5);
  }

  std::vector<float> turned(Turn turn, const std::vector<float>& from, int64_t first = 0) const {
    std::vector<float> out(from.size());
    rotate_halves(shape, {cosines.data(), sines.data(), positions, first}, turn, from.data(), out.data());
    return out;
  }

  // In fp32, operation by operation.
  std::vector<float> reference(Turn turn, int64_t first) const {
    std::vector<float> out(x.size());
    const float sign = turn == Turn::forward ? 1.0f : -1.0f;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        for (int64_t i = 0; i < shape.half; ++i) {
          const auto angle = static_cast<size_t>((first + t) % positions * shape.half + i);
          const auto a = static_cast<size_t>((t * shape.heads + h) * 2 * shape.half + i);
          const auto b = a + static_cast<size_t>(shape.half);
          const float c = cosines[angle], s = sign * sines[angle];
          out[a] = x[a] * c - x[b] * s;
          out[b] = x[b] * c + x[a] * s;
        }
      }
    }
    return out;
  }
};

TEST(RotateHalves, GivesTheReferenceBitsOnEveryTarget) {
  for (const int64_t half : {1, 3, 5, 8, 16, 32, 37}) {
    const Rotated test({7, 3, half}, 5);
    for (const auto turn : {Turn::forward, Turn::backward}) {
      for (const int64_t first : {0, 4}) {
        const auto expected = bits(test.reference(turn, first));
        for_each_target([&] { EXPECT_EQ(bits(test.turned(turn, test.x, first)), expected); });
      }
    }
  }
}

TEST(RotateHalves, BackwardIsTheInverse) {
  const Rotated test({6, 2, 20}, 6);
  const auto back = test.turned(Turn::backward, test.turned(Turn::forward, test.x));
  for (size_t i = 0; i < back.size(); ++i) EXPECT_NEAR(back[i], test.x[i], 2e-6f);
}

TEST(RotateHalves, WorksInPlace) {
  const Rotated test({6, 2, 20}, 6);
  auto x = test.x;
  rotate_halves(test.shape, {test.cosines.data(), test.sines.data(), 6, 0}, Turn::forward, x.data(), x.data());
  EXPECT_EQ(bits(x), bits(test.turned(Turn::forward, test.x)));
}

}  // namespace
}  // namespace sherd::kernels
