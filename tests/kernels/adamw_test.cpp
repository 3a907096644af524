#include "sherd/kernels/adamw.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kSizes;
using testing::random_floats;

AdamWScalars scalars_at(int64_t step, double beta1 = 0.9) {
  const double beta2 = 0.95;
  return {.lr = 1e-3,
          .beta1 = beta1,
          .beta2 = beta2,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .l2 = 0.0,
          .bias_correction1 = 1.0 - std::pow(beta1, static_cast<double>(step)),
          .bias_correction2_sqrt = std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step))),
          .gradient_scale = 0.37};
}

struct State {
  std::vector<float> gradient, parameter, m, v;

  explicit State(int64_t n)
      : gradient(random_floats(n, 1)), parameter(random_floats(n, 2)), m(random_floats(n, 3, 0.1f)), v(m) {
    for (float& value : v) value *= value;
  }

  void update(const AdamWScalars& s, int64_t begin, int64_t end) {
    adamw(s, end - begin, gradient.data() + begin, Fp32Weights{parameter.data() + begin},
          Fp32Moments{m.data() + begin, v.data() + begin});
  }
};

/// Adam's: the decay is added to the gradient.
AdamWScalars adam_at(int64_t step) {
  AdamWScalars s = scalars_at(step);
  std::swap(s.l2, s.weight_decay);
  return s;
}

// The documented operations one by one: the kernel must give these very bits.
void reference_fp32(const AdamWScalars& s, State& state) {
  const double w = 1.0 - s.beta1;
  for (size_t i = 0; i < state.m.size(); ++i) {
    float g = state.gradient[i] * static_cast<float>(s.gradient_scale);
    if (s.l2 != 0) g = g + static_cast<float>(s.l2) * state.parameter[i];
    float& m = state.m[i];
    float& v = state.v[i];
    m = w < 0.5 ? m + static_cast<float>(w) * (g - m) : g + static_cast<float>(w - 1.0) * (g - m);
    v = static_cast<float>(s.beta2) * v + static_cast<float>(1.0 - s.beta2) * g * g;
    const float rate = static_cast<float>(s.lr * s.bias_correction2_sqrt / s.bias_correction1);
    const float eps = static_cast<float>(s.eps * s.bias_correction2_sqrt);
    float& p = state.parameter[i];
    p = p * static_cast<float>(1.0 - s.lr * s.weight_decay) - rate * m / (std::sqrt(v) + eps);
  }
}

void expect_equal(const State& got, const State& expected) {
  EXPECT_EQ(bits(got.parameter), bits(expected.parameter));
  EXPECT_EQ(bits(got.m), bits(expected.m));
  EXPECT_EQ(bits(got.v), bits(expected.v));
  EXPECT_EQ(bits(got.gradient), bits(expected.gradient));
}

TEST(AdamW, GivesTheReferenceBitsOnEveryTarget) {
  for (const double beta1 : {0.0, 0.3, 0.5, 0.9}) {
    for (const int64_t n : kSizes) {
      SCOPED_TRACE(n);
      State expected(n);
      reference_fp32(scalars_at(3, beta1), expected);
      for_each_target([&] {
        State got(n);
        got.update(scalars_at(3, beta1), 0, n);
        expect_equal(got, expected);
      });
    }
  }
}

TEST(Adam, GivesTheReferenceBitsOnEveryTarget) {
  for (const int64_t n : kSizes) {
    SCOPED_TRACE(n);
    State expected(n);
    reference_fp32(adam_at(3), expected);
    for_each_target([&] {
      State got(n);
      const int64_t cut = n / 3;
      got.update(adam_at(3), 0, cut);
      got.update(adam_at(3), cut, n);
      expect_equal(got, expected);
    });
  }
}

TEST(AdamW, MomentsDecayToZeroInsteadOfDenormalsAndNanStays) {
  for_each_target([] {
    State state(33);
    state.gradient.assign(33, 0.0f);
    state.m.assign(33, -1.2e-38f);
    state.v.assign(33, 1.2e-38f);
    state.m[1] = state.v[2] = std::numeric_limits<float>::quiet_NaN();
    state.update(scalars_at(5), 0, 33);
    for (const size_t i : {0U, 31U, 32U}) {
      EXPECT_EQ(state.m[i], 0.0f);
      EXPECT_EQ(state.v[i], 0.0f);
    }
    EXPECT_TRUE(std::isnan(state.m[1]) && std::isnan(state.v[2]));
    EXPECT_TRUE(std::isnan(state.parameter[1]) && std::isnan(state.parameter[2]));
  });
}

TEST(AdamW, GivesTheSameBitsWhereverTheRangeIsSplit) {
  const int64_t n = 1031;
  State whole(n);
  whole.update(scalars_at(2), 0, n);
  for_each_target([&] {
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{0, 1, n}, {0, 13, 14, 511, n}, {0, 17, 33, 49, 1030, n}, {0, 0, 255, 256, n, n}}) {
      State split(n);
      for (size_t k = 0; k + 1 < cuts.size(); ++k) split.update(scalars_at(2), cuts[k], cuts[k + 1]);
      expect_equal(split, whole);
    }
  });
}

TEST(AdamW, TakesAnyAlignmentAndWritesNothingOutside) {
  for_each_target([] {
    for (const int64_t offset : {1, 2, 3, 5, 7, 9, 15}) {
      const int64_t n = 131;
      State got(offset + n + 16), expected = got;
      got.update(scalars_at(1), offset, offset + n);
      reference_fp32(scalars_at(1), expected);
      const State untouched(offset + n + 16);
      for (int64_t i = 0; i < offset + n + 16; ++i) {
        const bool inside = i >= offset && i < offset + n;
        const State& source = inside ? expected : untouched;
        const auto k = static_cast<size_t>(i);
        EXPECT_EQ(got.parameter[k], source.parameter[k]) << i;
        EXPECT_EQ(got.m[k], source.m[k]) << i;
        EXPECT_EQ(got.v[k], source.v[k]) << i;
      }
    }
  });
}

TEST(AdamW, FollowsTheFormulaInDoublePrecision) {
  const int64_t n = 4097;
  for (const int64_t step : {1, 10, 1000}) {
    const AdamWScalars s = scalars_at(step);
    const State start(n);
    State got(n);
    got.update(s, 0, n);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const double g = static_cast<double>(start.gradient[i]) * s.gradient_scale;
      const double m = start.m[i] + (1.0 - s.beta1) * (g - start.m[i]);
      const double v = s.beta2 * start.v[i] + (1.0 - s.beta2) * g * g;
      const double move = s.lr / s.bias_correction1 * m / (std::sqrt(v) / s.bias_correction2_sqrt + s.eps);
      const double p = start.parameter[i] * (1.0 - s.lr * s.weight_decay) - move;
      // m cancels where g and the old m differ in sign: its error is relative to both, and carries over to the move.
      const double unit = std::ldexp(1.0, -24);
      const double m_error = 4 * unit * (std::abs(g) + std::abs(start.m[i]));
      EXPECT_NEAR(got.m[i], m, m_error);
      EXPECT_NEAR(got.v[i], v, 6 * unit * v);
      const double lever = v > 0 ? s.lr / s.bias_correction1 * s.bias_correction2_sqrt / std::sqrt(v) : 0;
      EXPECT_NEAR(got.parameter[i], p,
                  3 * unit * std::abs(start.parameter[i]) + 10 * unit * std::abs(move) + lever * m_error);
    }
  }
}

TEST(AdamW, ZeroGradientAndStateOnlyDecays) {
  State state(33);
  state.gradient.assign(33, 0.0f);
  state.m = state.v = state.gradient;
  const State start = state;
  state.update(scalars_at(1), 0, 33);
  for (size_t i = 0; i < 33; ++i) EXPECT_EQ(state.parameter[i], start.parameter[i] * 0.9999f);
}

// torch rounds differently in three places: it may fuse multiply-adds, divides sqrt(v) by the bias correction, and
// forms m as it likes. Each is one rounding of the value concerned, so a few units in the last place a step.
TEST(AdamW, AgreesWithTorchFused) {
  const int64_t n = 4097;
  State state(n);
  state.m.assign(static_cast<size_t>(n), 0.0f);
  state.v = state.m;
  State torch_state = state;
  const auto view = [&](std::vector<float>& values) { return at::from_blob(values.data(), {n}); };
  at::Tensor step = at::zeros({});

  for (int64_t k = 1; k <= 10; ++k) {
    const std::vector<float> gradient = random_floats(n, static_cast<uint32_t>(100 + k), 0.02f);
    state.gradient = torch_state.gradient = gradient;
    AdamWScalars s = scalars_at(k);
    s.gradient_scale = 1.0;
    state.update(s, 0, n);
    step.fill_(static_cast<double>(k));
    at::_fused_adamw_({view(torch_state.parameter)}, {view(torch_state.gradient)}, {view(torch_state.m)},
                      {view(torch_state.v)}, {}, {step}, s.lr, s.beta1, s.beta2, s.weight_decay, s.eps, false, false);
  }
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    // A step moves a parameter by at most about lr, so ten steps keep 1e-6 of lr beside the roundings of p itself.
    EXPECT_NEAR(state.parameter[i], torch_state.parameter[i], 10 * 6e-8 * std::abs(state.parameter[i]) + 1e-8);
    EXPECT_NEAR(state.m[i], torch_state.m[i], 2e-8);  // gradients of 0.02: 1e-6 of them
    EXPECT_NEAR(state.v[i], torch_state.v[i], 1e-6 * state.v[i]);
  }
}

}  // namespace
}  // namespace sherd::kernels
