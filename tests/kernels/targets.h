// Runs a test body once for each instruction set that this machine has, and what the kernel tests share.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <bit>
#include <cstdint>
#include <random>
#include <vector>

namespace sherd::testing {

/// Calls body() with Highway's dispatch fixed to each supported target in turn; restores the dispatch.
template <class Body>
void for_each_target(const Body& body) {
  const auto choose = [](int64_t mask) {
    hwy::SetSupportedTargetsForTest(mask);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  };
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    choose(target);
    body();
  }
  choose(0);
}

/// Half a unit in the last place of fp32, relative: what one rounding is off at most.
inline constexpr double kHalfUnit = 0x1p-24;

/// Sizes around vector widths, unroll factors and blocks.
inline const std::vector<int64_t> kSizes = {0, 1, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 1024, 1025, 4097};

/// Normally distributed values, a few of them zero.
inline std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = random() % 16 == 0 ? 0.0f : normal(random);
  return values;
}

/// Bit patterns, so that comparisons see signed zeros and NaNs and failures print exactly.
inline std::vector<uint32_t> bits(const std::vector<float>& values) {
  std::vector<uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<uint32_t>(value));
  return result;
}

}  // namespace sherd::testing
