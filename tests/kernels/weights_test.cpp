#include "sherd/kernels/weights.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "sherd/kernels/philox.h"
#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kSizes;

/// Floats of all exponents and signs, with what lies halfway between two of 16 bits, and what is no number.
std::vector<float> awkward_floats(uint32_t stride = 8191) {
  std::vector<float> values;
  for (uint64_t pattern = 0; pattern <= 0xFFFFFFFFull; pattern += stride)
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(pattern)));
  for (uint32_t high = 0; high <= 0xFFFF; high += 7)
    for (const uint32_t low : {0x0u, 0x1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, 0x1000u, 0x3000u})
      values.push_back(std::bit_cast<float>(high << 16 | low));
  return values;
}

bool same_or_nan(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

TEST(Weights, WidenEveryHalf) {
  std::vector<Bf16> bf16(65536);
  std::vector<Fp16> fp16(65536);
  for (uint32_t k = 0; k < 65536; ++k) bf16[k].bits = fp16[k].bits = static_cast<uint16_t>(k);
  for_each_target([&] {
    std::vector<float> from_bf16(65536), from_fp16(65536);
    widen(bf16.data(), 65536, from_bf16.data());
    widen(fp16.data(), 65536, from_fp16.data());
    for (uint32_t k = 0; k < 65536; ++k) {
      const auto half = static_cast<uint16_t>(k);
      ASSERT_TRUE(same_or_nan(from_bf16[k], c10::BFloat16(half, c10::BFloat16::from_bits()))) << k;
      ASSERT_TRUE(same_or_nan(from_fp16[k], c10::Half(half, c10::Half::from_bits()))) << k;
    }
  });
}

TEST(Weights, CopiesAreRoundedToNearest) {
  const std::vector<float> values = awkward_floats();
  const auto n = static_cast<int64_t>(values.size());
  for_each_target([&] {
    std::vector<float> master(values.size());
    std::vector<Fp16> fp16(values.size());
    std::vector<Bf16> bf16(values.size());
    store_weights(CopiedWeights<Fp16>{master.data(), fp16.data()}, n, values.data());
    EXPECT_EQ(bits(master), bits(values));
    store_weights(CopiedWeights<Bf16>{master.data(), bf16.data()}, n, values.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const float x = values[i];
      ASSERT_TRUE(same_or_nan(c10::Half(fp16[i].bits, c10::Half::from_bits()), c10::Half(x))) << x;
      // torch rounds ties to even, this one away from zero.
      const uint32_t pattern = std::bit_cast<uint32_t>(x);
      const c10::BFloat16 expected =
          (pattern & 0xFFFF) == 0x8000 && !std::isnan(x)
              ? c10::BFloat16(static_cast<uint16_t>((pattern >> 16) + 1), c10::BFloat16::from_bits())
              : c10::BFloat16(x);
      ASSERT_TRUE(same_or_nan(c10::BFloat16(bf16[i].bits, c10::BFloat16::from_bits()), expected)) << x;
    }
  });
}

TEST(Weights, SplitLosesNothingAndHasTheCopysWeights) {
  const std::vector<float> values = awkward_floats();
  const auto n = static_cast<int64_t>(values.size());
  for_each_target([&] {
    std::vector<Bf16> high(values.size()), copy(values.size());
    std::vector<int16_t> low(values.size());
    std::vector<float> master(values.size()), again(values.size());
    store_weights(SplitWeights{high.data(), low.data()}, n, values.data());
    store_weights(CopiedWeights<Bf16>{master.data(), copy.data()}, n, values.data());
    load_weights(SplitWeights{high.data(), low.data()}, n, again.data());
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_TRUE(same_or_nan(again[i], values[i])) << std::bit_cast<uint32_t>(values[i]);
      ASSERT_EQ(high[i].bits, copy[i].bits) << values[i];
      ASSERT_EQ(std::isnan(values[i]), std::isnan(c10::BFloat16(high[i].bits, c10::BFloat16::from_bits())));
    }
  });
}

// Known answers of the authors' own implementation (Random123, kat_vectors).
TEST(Philox, GivesTheKnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  constexpr uint32_t kAll = 0xffffffff;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({kAll, kAll, kAll, kAll}, {kAll, kAll}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::vector<uint16_t> stochastic(const std::vector<float>& values, uint64_t key, uint32_t step,
                                 const std::vector<int64_t>& cuts, int64_t first = 0) {
  std::vector<Bf16> weights(values.size());
  for (size_t k = 0; k + 1 < cuts.size(); ++k)
    store_weights(from(StochasticWeights{weights.data(), first, key, step}, cuts[k]), cuts[k + 1] - cuts[k],
                  values.data() + cuts[k]);
  std::vector<uint16_t> result;
  for (const Bf16 weight : weights) result.push_back(weight.bits);
  return result;
}

TEST(StochasticWeights, AreTheSameBitsWhereverTheyAreCutAndOnEveryTarget) {
  const std::vector<float> values = testing::random_floats(1037, 1);
  const auto whole = stochastic(values, 7, 3, {0, 1037});
  for_each_target([&] {
    EXPECT_EQ(stochastic(values, 7, 3, {0, 1, 5, 8, 255, 256, 300, 777, 1037}), whole);
    for (const int64_t first : {1, 13, 250, 700}) {
      const std::vector<float> rest(values.begin() + first, values.end());
      const auto part = stochastic(rest, 7, 3, {0, static_cast<int64_t>(rest.size())}, first);
      EXPECT_EQ(part, std::vector<uint16_t>(whole.begin() + first, whole.end()));
    }
  });
  EXPECT_NE(stochastic(values, 8, 3, {0, 1037}), whole);
  EXPECT_NE(stochastic(values, 7, 4, {0, 1037}), whole);
}

TEST(StochasticWeights, DrawWhatTheGeneratorSays) {
  constexpr uint64_t kKey = 0xFEDCBA9876543210;
  const std::vector<float> values = testing::random_floats(1037, 2);
  // The last begins before the counter's lower word is full, and ends after.
  for (const int64_t first : {int64_t{0}, int64_t{3}, (int64_t{1} << 35) - 500}) {
    std::vector<uint16_t> expected;
    for (size_t i = 0; i < values.size(); ++i) {
      const auto element = static_cast<uint64_t>(first) + i;
      std::array<uint16_t, kPhiloxHalves> random{};
      philox_halves(kKey, element / kPhiloxHalves, 9, random.data());
      expected.push_back(
          static_cast<uint16_t>((std::bit_cast<uint32_t>(values[i]) + random[element % kPhiloxHalves]) >> 16));
    }
    for_each_target([&] { EXPECT_EQ(stochastic(values, kKey, 9, {0, 1037}, first), expected) << first; });
  }
}

TEST(StochasticWeights, AreRoundedUpAsOftenAsTheyAreNear) {
  constexpr int64_t kDraws = 1 << 18;
  for (const uint32_t low : {0x0000u, 0x0100u, 0x4000u, 0x8000u, 0xC000u, 0xFFFFu}) {
    const std::vector<float> values(kDraws, std::bit_cast<float>(0x3F810000u | low));
    int64_t up = 0;
    for (const uint16_t weight : stochastic(values, 99, 1, {0, kDraws})) {
      ASSERT_TRUE(weight == 0x3F81 || weight == 0x3F82);
      up += weight == 0x3F82;
    }
    const double p = low / 65536.0, expected = p * kDraws;
    EXPECT_NEAR(static_cast<double>(up), expected, 5 * std::sqrt(kDraws * p * (1 - p)) + 1e-9) << low;
  }
}

TEST(StochasticWeights, KeepWhatIsNoNumber) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto weights = stochastic({infinity, -infinity, std::bit_cast<float>(0x7FFFFFFFu)}, 1, 1, {0, 3});
  EXPECT_EQ(weights[0], 0x7F80);
  EXPECT_EQ(weights[1], 0xFF80);
  EXPECT_TRUE(std::isnan(c10::BFloat16(weights[2], c10::BFloat16::from_bits())));
}

}  // namespace
}  // namespace sherd::kernels
