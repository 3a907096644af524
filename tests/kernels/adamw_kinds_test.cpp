// AdamW's other kinds of weights, gradients and moments, held against the fp32 one (adamw_test.cpp).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "sherd/kernels/adamw.h"
#include "sherd/kernels/dynamic_map.h"
#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::random_floats;

const std::vector<int64_t> kKindLengths = {0, 1, 7, 33, 255, 256, 257, 1031, 4096};

AdamWScalars kind_scalars(int64_t step) {
  return {.lr = 1e-2,
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .l2 = 0.03,
          .bias_correction1 = 1.0 - std::pow(0.9, static_cast<double>(step)),
          .bias_correction2_sqrt = std::sqrt(1.0 - std::pow(0.95, static_cast<double>(step))),
          .gradient_scale = 0.37};
}

template <class Half>
std::vector<Half> halves(const std::vector<float>& values) {
  std::vector<Half> result(values.size());
  std::vector<float> master(values.size());
  store_weights(CopiedWeights<Half>{master.data(), result.data()}, static_cast<int64_t>(values.size()), values.data());
  return result;
}

template <class Half>
std::vector<float> widened(const std::vector<Half>& values) {
  std::vector<float> result(values.size());
  widen(values.data(), static_cast<int64_t>(values.size()), result.data());
  return result;
}

/// All that an update may touch, of n elements.
struct KindState {
  std::vector<float> p, m, v, m_absmax, v_absmax, gradient;
  std::vector<uint8_t> m_codes, v_codes;
  std::vector<Bf16> bf16;
  std::vector<Fp16> fp16;
  std::vector<int16_t> low;

  explicit KindState(int64_t n)
      : p(random_floats(n, 2)),
        m(static_cast<size_t>(n)),
        v(static_cast<size_t>(n)),
        m_absmax(static_cast<size_t>(map_blocks(n))),
        v_absmax(m_absmax),
        gradient(random_floats(n, 1)),
        m_codes(static_cast<size_t>(n)),
        v_codes(static_cast<size_t>(n)),
        bf16(static_cast<size_t>(n)),
        fp16(static_cast<size_t>(n)),
        low(static_cast<size_t>(n)) {
    store_weights(split(), n, p.data());
  }
  int64_t n() const { return static_cast<int64_t>(p.size()); }
  SplitWeights split() { return {bf16.data(), low.data()}; }
  Fp32Moments wide() { return {m.data(), v.data()}; }
  MapMoments codes() { return {m_codes.data(), v_codes.data(), m_absmax.data(), v_absmax.data()}; }
};

void expect_same_state(const KindState& a, const KindState& b) {
  EXPECT_EQ(bits(a.p), bits(b.p));
  EXPECT_EQ(bits(a.m), bits(b.m));
  EXPECT_EQ(bits(a.v), bits(b.v));
  EXPECT_EQ(a.m_codes, b.m_codes);
  EXPECT_EQ(a.v_codes, b.v_codes);
  EXPECT_EQ(bits(a.m_absmax), bits(b.m_absmax));
  EXPECT_EQ(bits(a.v_absmax), bits(b.v_absmax));
  EXPECT_EQ(0, std::memcmp(a.bf16.data(), b.bf16.data(), 2 * a.bf16.size()));
  EXPECT_EQ(0, std::memcmp(a.fp16.data(), b.fp16.data(), 2 * a.fp16.size()));
  EXPECT_EQ(a.low, b.low);
}

TEST(AdamWKinds, MastersOfAllKindsAreTheFp32Update) {
  for (const int64_t n : kKindLengths) {
    SCOPED_TRACE(n);
    KindState plain(n);
    for (int64_t step = 1; step <= 3; ++step)
      adamw(kind_scalars(step), n, plain.gradient.data(), Fp32Weights{plain.p.data()}, plain.wide());
    for_each_target([&] {
      KindState split(n), bf16(n), fp16(n);
      for (int64_t step = 1; step <= 3; ++step) {
        adamw(kind_scalars(step), n, split.gradient.data(), split.split(), split.wide());
        adamw(kind_scalars(step), n, bf16.gradient.data(), CopiedWeights<Bf16>{bf16.p.data(), bf16.bf16.data()},
              bf16.wide());
        adamw(kind_scalars(step), n, fp16.gradient.data(), CopiedWeights<Fp16>{fp16.p.data(), fp16.fp16.data()},
              fp16.wide());
      }
      std::vector<float> of_split(plain.p.size());
      load_weights(split.split(), n, of_split.data());
      EXPECT_EQ(bits(of_split), bits(plain.p));
      EXPECT_EQ(bits(bf16.p), bits(plain.p));
      EXPECT_EQ(bits(fp16.p), bits(plain.p));
      EXPECT_EQ(bits(widened(split.bf16)), bits(widened(halves<Bf16>(plain.p))));
      EXPECT_EQ(bits(widened(bf16.bf16)), bits(widened(split.bf16)));
      EXPECT_EQ(bits(widened(fp16.fp16)), bits(widened(halves<Fp16>(plain.p))));
      for (const KindState* state : {&split, &bf16, &fp16}) {
        EXPECT_EQ(bits(state->m), bits(plain.m));
        EXPECT_EQ(bits(state->v), bits(plain.v));
      }
    });
  }
}

TEST(AdamWKinds, HalfGradientsAreTheirFp32Values) {
  const int64_t n = 1031;
  for (const bool eight_bits : {false, true}) {
    const auto moments = [&](KindState& state) { return eight_bits ? Moments(state.codes()) : Moments(state.wide()); };
    for_each_target([&] {
      KindState from_bf16(n), wide_bf16(n), from_fp16(n), wide_fp16(n);
      const auto bf16 = halves<Bf16>(from_bf16.gradient);
      const auto fp16 = halves<Fp16>(from_bf16.gradient);
      const auto bf16_values = widened(bf16), fp16_values = widened(fp16);
      adamw(kind_scalars(1), n, bf16.data(), Fp32Weights{from_bf16.p.data()}, moments(from_bf16));
      adamw(kind_scalars(1), n, bf16_values.data(), Fp32Weights{wide_bf16.p.data()}, moments(wide_bf16));
      adamw(kind_scalars(1), n, fp16.data(), Fp32Weights{from_fp16.p.data()}, moments(from_fp16));
      adamw(kind_scalars(1), n, fp16_values.data(), Fp32Weights{wide_fp16.p.data()}, moments(wide_fp16));
      expect_same_state(from_bf16, wide_bf16);
      expect_same_state(from_fp16, wide_fp16);
    });
  }
}

/// One step by decode(), the fp32 update and encode(). The kernel may be one code off, where a value is as good as
/// halfway between two entries.
void expect_reference_codes(const KindState& before, const KindState& after, int64_t step) {
  KindState wide = before;
  const int64_t n = wide.n();
  decode(DynamicMap::signed_values, n, wide.m_codes.data(), wide.m_absmax.data(), wide.m.data());
  decode(DynamicMap::unsigned_values, n, wide.v_codes.data(), wide.v_absmax.data(), wide.v.data());
  adamw(kind_scalars(step), n, wide.gradient.data(), Fp32Weights{wide.p.data()}, wide.wide());
  EXPECT_EQ(bits(after.p), bits(wide.p));
  KindState codes = before;
  encode(DynamicMap::signed_values, n, wide.m.data(), codes.m_codes.data(), codes.m_absmax.data());
  encode(DynamicMap::unsigned_values, n, wide.v.data(), codes.v_codes.data(), codes.v_absmax.data());
  EXPECT_EQ(bits(after.m_absmax), bits(codes.m_absmax));
  EXPECT_EQ(bits(after.v_absmax), bits(codes.v_absmax));
  int64_t off = 0;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    ASSERT_LE(std::abs(after.m_codes[i] - codes.m_codes[i]), 1) << wide.m[i];
    ASSERT_LE(std::abs(after.v_codes[i] - codes.v_codes[i]), 1) << wide.v[i];
    off += (after.m_codes[i] != codes.m_codes[i]) + (after.v_codes[i] != codes.v_codes[i]);
  }
  EXPECT_LE(off, 1 + n / 500);
}

TEST(AdamWKinds, EightBitMomentsAreDecodedUpdatedAndEncoded) {
  for (const int64_t n : kKindLengths) {
    SCOPED_TRACE(n);
    std::vector<KindState> results;
    for_each_target([&] {
      KindState state(n);
      for (int64_t step = 1; step <= 6; ++step) {
        state.gradient = random_floats(n, static_cast<uint32_t>(100 + step), step == 4 ? 1e-6f : 0.02f);
        const KindState before = state;
        adamw(kind_scalars(step), n, state.gradient.data(), Fp32Weights{state.p.data()}, state.codes());
        expect_reference_codes(before, state, step);
      }
      results.push_back(state);
    });
    for (const KindState& result : results) expect_same_state(result, results.front());
  }
}

TEST(AdamWKinds, EightBitMomentsGiveTheSameBitsForAllMastersAndWhereverBlocksAreSplit) {
  const int64_t n = 1031;
  for_each_target([&] {
    KindState plain(n), split(n), cut(n);
    for (int64_t step = 1; step <= 3; ++step) {
      adamw(kind_scalars(step), n, plain.gradient.data(), Fp32Weights{plain.p.data()}, plain.codes());
      adamw(kind_scalars(step), n, split.gradient.data(), split.split(), split.codes());
      int64_t begin = 0;
      for (const int64_t end : {int64_t{256}, int64_t{768}, n}) {
        adamw(kind_scalars(step), end - begin, from(Gradient(cut.gradient.data()), begin),
              from(Weights(cut.split()), begin), from(Moments(cut.codes()), begin));
        begin = end;
      }
    }
    expect_same_state(cut, split);
    std::vector<float> of_split(plain.p.size());
    load_weights(split.split(), n, of_split.data());
    EXPECT_EQ(bits(of_split), bits(plain.p));
    EXPECT_EQ(split.m_codes, plain.m_codes);
    EXPECT_EQ(split.v_codes, plain.v_codes);
  });
}

// Whatever a gradient holds, it stays in its block, and the others are as without it.
TEST(AdamWKinds, OneBlockDoesNotSpoilTheOthers) {
  const float awkward[] = {std::numeric_limits<float>::infinity(),   -std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN(),  std::numeric_limits<float>::max(),
                           std::numeric_limits<float>::denorm_min(), 0.0f};
  const int64_t n = 5 * kMapBlock + 40;
  std::mt19937 random(3);
  for_each_target([&] {
    for (int round = 0; round < 40; ++round) {
      KindState clean(n), spoilt(n);
      const auto block = static_cast<size_t>(random() % 6);
      const size_t first = block * kMapBlock, last = std::min<size_t>(first + kMapBlock, static_cast<size_t>(n));
      for (size_t i = first; i < last; ++i)
        if (random() % 3 == 0) spoilt.gradient[i] = awkward[random() % std::size(awkward)];
      for (int64_t step = 1; step <= 3; ++step) {
        adamw(kind_scalars(step), n, clean.gradient.data(), Fp32Weights{clean.p.data()}, clean.codes());
        adamw(kind_scalars(step), n, spoilt.gradient.data(), Fp32Weights{spoilt.p.data()}, spoilt.codes());
      }
      for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        if (i >= first && i < last) continue;
        ASSERT_EQ(spoilt.p[i], clean.p[i]);
        ASSERT_EQ(spoilt.m_codes[i], clean.m_codes[i]);
        ASSERT_EQ(spoilt.v_codes[i], clean.v_codes[i]);
      }
      for (size_t b = 0; b < clean.m_absmax.size(); ++b) {
        if (b != block) {
          ASSERT_EQ(spoilt.m_absmax[b], clean.m_absmax[b]);
        }
      }
    }
  });
}

TEST(AdamWKinds, BlocksOfZerosStayZero) {
  KindState state(600);
  state.gradient.assign(600, 0.0f);
  AdamWScalars s = kind_scalars(1);
  s.l2 = 0;
  for_each_target([&] {
    adamw(s, 600, state.gradient.data(), Fp32Weights{state.p.data()}, state.codes());
    for (const uint8_t code : state.m_codes) EXPECT_EQ(code, 127);
    for (const uint8_t code : state.v_codes) EXPECT_EQ(code, 0);
    for (const float scale : state.m_absmax) EXPECT_EQ(scale, 0.0f);
  });
}

}  // namespace
}  // namespace sherd::kernels
