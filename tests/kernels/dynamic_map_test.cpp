#include "sherd/kernels/dynamic_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kSizes;
using testing::random_floats;

constexpr auto kSigned = DynamicMap::signed_values, kUnsigned = DynamicMap::unsigned_values;

/// The map as bitsandbytes builds it: means of equal intervals of [0.1, 1] in each decade, zero and one; sorted.
std::vector<float> described(DynamicMap map) {
  std::vector<float> values = {0.0f, 1.0f};
  for (int decade = 0; decade < 7; ++decade) {
    const int n = 1 << (decade + (map == kUnsigned ? 1 : 0));
    for (int j = 0; j < n; ++j) {
      const double low = 0.1 + 0.9 * j / n, high = 0.1 + 0.9 * (j + 1) / n;
      const auto value = static_cast<float>((low + high) / 2 * std::pow(10.0, decade - 6));
      values.push_back(value);
      if (map == kSigned) values.push_back(-value);
    }
  }
  std::sort(values.begin(), values.end());
  return values;
}

TEST(DynamicMap, HasTheDescribedEntries) {
  for (const auto map : {kSigned, kUnsigned}) {
    const auto expected = described(map);
    ASSERT_EQ(expected.size(), 256u);
    for (int code = 0; code < 256; ++code) EXPECT_FLOAT_EQ(codebook(map)[code], expected[code]) << code;
  }
}

/// Encodes x in [-1, 1] unscaled: each block has a one beside 255 values.
class Unscaled {
 public:
  explicit Unscaled(DynamicMap map) : map_(map) {}

  /// The codes of bit patterns first, first + stride, ...: `count` <= 255 of them.
  const uint8_t* encode_patterns(uint32_t first, uint32_t stride, int count) {
    for (int k = 0; k < count; ++k) x_[k] = std::bit_cast<float>(first + stride * static_cast<uint32_t>(k));
    std::fill(x_ + count, x_ + kMapBlock, 1.0f);
    encode(map_, kMapBlock, x_, codes_, &absmax_);
    return codes_;
  }
  float value(int k) const { return x_[k]; }

 private:
  DynamicMap map_;
  float x_[kMapBlock];
  uint8_t codes_[kMapBlock];
  float absmax_ = 0;
};

/// All patterns of one sign from zero to one in steps: the nearest code moves one way only, so that it is followed
/// along.
void expect_nearest(DynamicMap map, bool negative, uint32_t stride) {
  const auto book = codebook(map);
  const double sign = negative ? -1 : 1;
  int expected = map == kSigned ? 127 : 0;
  const int direction = negative ? -1 : 1, last = negative ? 0 : 255;
  // Halfway to the next entry, exactly: the sum of two floats is a double.
  const auto halfway = [&] {
    return sign * (static_cast<double>(book[expected]) + static_cast<double>(book[expected + direction])) / 2;
  };
  double next = halfway();
  Unscaled unscaled(map);
  const uint32_t one = std::bit_cast<uint32_t>(1.0f), sign_bit = negative ? 0x80000000u : 0;
  int64_t wrong = 0;
  for (uint64_t first = 0; first <= one && wrong < 10; first += 255ull * stride) {
    const int count = static_cast<int>(std::min<uint64_t>(255, (one - first) / stride + 1));
    const uint8_t* codes = unscaled.encode_patterns(static_cast<uint32_t>(first) | sign_bit, stride, count);
    for (int k = 0; k < count; ++k) {
      const double a = sign * static_cast<double>(unscaled.value(k));
      while (expected != last && a >= next) {
        expected += direction;
        next = expected == last ? 2.0 : halfway();
      }
      if (codes[k] == expected) continue;
      ++wrong;
      ADD_FAILURE() << "got code " << int{codes[k]} << " of " << unscaled.value(k) << ", expected " << expected;
    }
  }
}

TEST(DynamicMap, GivesTheNearestEntryOfEveryPositiveFloatUnsigned) { expect_nearest(kUnsigned, false, 1); }
TEST(DynamicMap, GivesTheNearestEntryOfEveryPositiveFloatSigned) { expect_nearest(kSigned, false, 1); }
TEST(DynamicMap, GivesTheNearestEntryOfEveryNegativeFloat) { expect_nearest(kSigned, true, 1); }

TEST(DynamicMap, GivesTheNearestEntryOnEveryInstructionSet) {
  for_each_target([] {
    for (const bool negative : {false, true}) expect_nearest(kSigned, negative, 251);
    expect_nearest(kUnsigned, false, 251);
  });
}

std::vector<uint8_t> all_codes() {
  std::vector<uint8_t> codes(256);
  std::iota(codes.begin(), codes.end(), uint8_t{0});
  return codes;
}

TEST(DynamicMap, DecodesWhatItsCodesStandFor) {
  const std::vector<uint8_t> codes = all_codes();
  for (const auto map : {kSigned, kUnsigned}) {
    for (const float absmax : {1.0f, 0.37f, 3.1e-5f, 2e-38f, 7e30f}) {
      std::vector<std::vector<uint32_t>> results;
      for_each_target([&] {
        std::vector<float> x(256);
        decode(map, 256, codes.data(), &absmax, x.data());
        for (int code = 0; code < 256; ++code) {
          const double exact = static_cast<double>(codebook(map)[code]) * absmax;
          EXPECT_NEAR(x[code], exact, 2e-6 * std::fabs(exact) + std::numeric_limits<float>::min()) << code;
        }
        EXPECT_EQ(x[map == kSigned ? 127 : 0], 0.0f);
        results.push_back(bits(x));
      });
      for (const auto& result : results) EXPECT_EQ(result, results.front());
    }
  }
}

TEST(DynamicMap, EncodesItsOwnValuesToTheSameCodes) {
  const std::vector<uint8_t> codes = all_codes();
  std::vector<uint8_t> again(256);
  for (const auto map : {kSigned, kUnsigned}) {
    for (const float absmax : {1.0f, 0.37f, 3.1e-5f}) {
      std::vector<float> x(256);
      decode(map, 256, codes.data(), &absmax, x.data());
      x[255] = absmax;
      float found = 0;
      encode(map, 256, x.data(), again.data(), &found);
      EXPECT_EQ(again, codes);
      EXPECT_EQ(found, absmax);
    }
  }
}

TEST(DynamicMap, AnySizeAndAnyBlock) {
  for (const auto map : {kSigned, kUnsigned}) {
    for (const int64_t n : kSizes) {
      auto x = random_floats(n, static_cast<uint32_t>(n), 1e-3f);
      if (map == kUnsigned)
        for (float& value : x) value *= value;
      std::vector<std::vector<uint8_t>> results;
      for_each_target([&] {
        std::vector<uint8_t> codes(n, 99);
        std::vector<float> absmax(map_blocks(n)), back(n);
        encode(map, n, x.data(), codes.data(), absmax.data());
        decode(map, n, codes.data(), absmax.data(), back.data());
        for (int64_t i = 0; i < n; ++i) {
          const int64_t block = i / kMapBlock * kMapBlock;
          float most = 0;
          for (int64_t k = block; k < std::min(n, block + kMapBlock); ++k) most = std::max(most, std::fabs(x[k]));
          ASSERT_EQ(absmax[i / kMapBlock], most);
          // The widest interval is half a percent of 1 wide, of the smallest decade's entries half of themselves.
          ASSERT_NEAR(back[i], x[i], 0.0071 * most + 1e-12) << i;
        }
        results.push_back(codes);
      });
      for (const auto& result : results) EXPECT_EQ(result, results.front());
    }
  }
}

TEST(DynamicMap, NothingAndWhatIsNoNumberStayInTheirBlock) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const auto map : {kSigned, kUnsigned}) {
    for_each_target([&] {
      std::vector<float> x(4 * kMapBlock, 0.25f), absmax(4);
      std::vector<uint8_t> codes(x.size());
      std::fill(x.begin(), x.begin() + kMapBlock, 1e-39f);  // denormal
      x[300] = inf, x[301] = nan;
      x[600] = nan;
      encode(map, static_cast<int64_t>(x.size()), x.data(), codes.data(), absmax.data());
      EXPECT_EQ(absmax[0], 0.0f);
      EXPECT_EQ(absmax[1], inf);
      EXPECT_EQ(absmax[2], 0.25f);
      for (int k = 0; k < kMapBlock; ++k) {
        EXPECT_EQ(codes[k], map == kSigned ? 127 : 0);
        EXPECT_EQ(codes[3 * kMapBlock + k], 255);
        if (k == 600 - 2 * kMapBlock) continue;  // of no meaning
        EXPECT_EQ(codes[2 * kMapBlock + k], 255);
      }
      std::vector<float> back(x.size());
      decode(map, static_cast<int64_t>(x.size()), codes.data(), absmax.data(), back.data());
      EXPECT_EQ(back[0], 0.0f);
      EXPECT_EQ(back[3 * kMapBlock], 0.25f);
    });
  }
}

}  // namespace
}  // namespace sherd::kernels
