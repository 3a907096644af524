#include "sherd/kernels/lion.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "sherd/kernels/dynamic_map.h"
#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kSizes;
using testing::random_floats;

constexpr LionScalars kLion{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .gradient_scale = 0.37};

struct LionState {
  std::vector<float> gradient, parameter, momentum, absmax;
  std::vector<uint8_t> codes;
  std::vector<Bf16> high;
  std::vector<int16_t> low;

  explicit LionState(int64_t n)
      : gradient(random_floats(n, 1)),
        parameter(random_floats(n, 2)),
        momentum(random_floats(n, 3)),
        absmax(static_cast<size_t>(map_blocks(n))),
        codes(static_cast<size_t>(n)),
        high(static_cast<size_t>(n)),
        low(static_cast<size_t>(n)) {
    encode(DynamicMap::signed_values, n, momentum.data(), codes.data(), absmax.data());
    store_weights(SplitWeights{high.data(), low.data()}, n, parameter.data());
  }
  int64_t n() const { return static_cast<int64_t>(parameter.size()); }
};

// The documented operations one by one: the kernels must give these very bits.
void lion_reference(LionState& state) {
  const auto factor = [](double x) { return static_cast<float>(x); };
  for (size_t i = 0; i < state.gradient.size(); ++i) {
    float &p = state.parameter[i], &m = state.momentum[i];
    const float g = state.gradient[i] * factor(kLion.gradient_scale);
    const float direction = factor(kLion.beta1) * m + factor(1.0 - kLion.beta1) * g;
    const float sign = direction > 0 ? 1.0F : direction < 0 ? -1.0F : 0.0F;
    p = p * factor(1.0 - kLion.lr * kLion.weight_decay) - factor(kLion.lr) * sign;
    m = factor(kLion.beta2) * m + factor(1.0 - kLion.beta2) * g;
  }
}

/// The same with a momentum of codes.
void lion_map_reference(LionState& state) {
  const auto map = DynamicMap::signed_values;
  decode(map, state.n(), state.codes.data(), state.absmax.data(), state.momentum.data());
  lion_reference(state);
  encode(map, state.n(), state.momentum.data(), state.codes.data(), state.absmax.data());
}

TEST(Lion, GivesTheReferenceBitsOnEveryTargetWhereverTheRangeIsSplit) {
  for (const int64_t n : kSizes) {
    SCOPED_TRACE(n);
    LionState expected(n);
    for (int step = 0; step < 3; ++step) lion_reference(expected);
    for_each_target([&] {
      for (const int64_t cut : {int64_t{0}, n / 3}) {
        LionState got(n);
        for (int step = 0; step < 3; ++step) {
          for (const auto& [begin, end] : {std::pair(int64_t{0}, cut), std::pair(cut, n)})
            lion(kLion, end - begin, got.gradient.data() + begin, Fp32Weights{got.parameter.data() + begin},
                 Fp32Momentum{got.momentum.data() + begin});
        }
        EXPECT_EQ(bits(got.parameter), bits(expected.parameter));
        EXPECT_EQ(bits(got.momentum), bits(expected.momentum));
      }
    });
  }
}

TEST(Lion, EightBitMomentaAreDecodedUpdatedAndEncodedToTheNearestEntry) {
  for (const int64_t n : kSizes) {
    SCOPED_TRACE(n);
    LionState expected(n);
    for (int step = 0; step < 3; ++step) lion_map_reference(expected);
    for_each_target([&] {
      for (const int64_t cut : {int64_t{0}, n / 3 / kMapBlock * kMapBlock}) {
        LionState got(n);
        for (int step = 0; step < 3; ++step) {
          for (const auto& [begin, end] : {std::pair(int64_t{0}, cut), std::pair(cut, n)})
            lion(kLion, end - begin, got.gradient.data() + begin, Fp32Weights{got.parameter.data() + begin},
                 from(MapMomentum{got.codes.data(), got.absmax.data()}, begin));
        }
        EXPECT_EQ(bits(got.parameter), bits(expected.parameter));
        EXPECT_EQ(got.codes, expected.codes);
        EXPECT_EQ(bits(got.absmax), bits(expected.absmax));
      }
    });
  }
}

TEST(Lion, SplitWeightsAreTheFp32Update) {
  for (const int64_t n : {int64_t{33}, int64_t{4097}}) {
    for_each_target([&] {
      LionState wide(n), split(n), coded(n), coded_split(n);
      std::vector<float> values(static_cast<size_t>(n));
      const SplitWeights weights{split.high.data(), split.low.data()};
      const SplitWeights of_coded{coded_split.high.data(), coded_split.low.data()};
      for (int step = 0; step < 3; ++step) {
        lion(kLion, n, wide.gradient.data(), Fp32Weights{wide.parameter.data()}, Fp32Momentum{wide.momentum.data()});
        lion(kLion, n, split.gradient.data(), weights, Fp32Momentum{split.momentum.data()});
        lion(kLion, n, coded.gradient.data(), Fp32Weights{coded.parameter.data()},
             MapMomentum{coded.codes.data(), coded.absmax.data()});
        lion(kLion, n, coded_split.gradient.data(), of_coded,
             MapMomentum{coded_split.codes.data(), coded_split.absmax.data()});
      }
      load_weights(weights, n, values.data());
      EXPECT_EQ(bits(values), bits(wide.parameter));
      load_weights(of_coded, n, values.data());
      EXPECT_EQ(bits(values), bits(coded.parameter));
      EXPECT_EQ(coded_split.codes, coded.codes);
    });
  }
}

TEST(Lion, StaysWhereNothingPullsAndPassesOnWhatIsNoNumber) {
  for_each_target([] {
    float parameter[3] = {2, 2, 2}, momentum[3] = {0, 0, 0};
    const float gradient[3] = {0, std::numeric_limits<float>::quiet_NaN(), -1e-30F};
    LionScalars scalars = kLion;
    scalars.weight_decay = 0;
    lion(scalars, 3, gradient, Fp32Weights{parameter}, Fp32Momentum{momentum});
    EXPECT_EQ(parameter[0], 2);
    EXPECT_TRUE(std::isnan(parameter[1]));
    EXPECT_EQ(parameter[2], 2 + static_cast<float>(kLion.lr));
    EXPECT_EQ(momentum[0], 0);
  });
}

TEST(Lion, WritesNothingOutside) {
  for_each_target([] {
    const int64_t n = 131, first = 256;
    for (const bool eight_bits : {false, true}) {
      LionState got(first + n + 300), expected = got;
      const Momentum momentum = eight_bits ? Momentum(MapMomentum{got.codes.data(), got.absmax.data()})
                                           : Momentum(Fp32Momentum{got.momentum.data()});
      lion(kLion, n, got.gradient.data() + first, Fp32Weights{got.parameter.data() + first}, from(momentum, first));
      for (int64_t i = 0; i < got.n(); ++i) {
        if (i >= first && i < first + n) continue;
        const auto k = static_cast<size_t>(i);
        EXPECT_EQ(got.parameter[k], expected.parameter[k]) << i;
        EXPECT_EQ(got.momentum[k], expected.momentum[k]) << i;
        EXPECT_EQ(got.codes[k], expected.codes[k]) << i;
      }
      EXPECT_EQ(got.absmax[0], expected.absmax[0]);
    }
  });
}

}  // namespace
}  // namespace sherd::kernels
