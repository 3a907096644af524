#include <algorithm>
#include <cstddef>
#include <limits>

#include "sherd/kernels/adamw_factors.h"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/adamw_map.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/adamw_inl.h"
#include "sherd/kernels/map_rounding_inl.h"
#include "sherd/kernels/weights_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

constexpr size_t kBlock = kMapBlock, kAhead = 192;  // (elements to fetch ahead)
static_assert(kPiece == kBlock);
constexpr auto kSigned = DynamicMap::signed_values, kUnsigned = DynamicMap::unsigned_values;

struct Maps {
  const MapTables &m_tables = map_tables(kSigned), &v_tables = map_tables(kUnsigned);
  Rounder<kSigned> m{m_tables};
  Rounder<kUnsigned> v{v_tables};
};

/// 1 / absmax, or 0 for a block of zeros. What is no normal number is nothing.
HWY_INLINE float inverse(float& absmax) {
  absmax = absmax < std::numeric_limits<float>::min() ? 0.0f : absmax;
  return absmax > 0 ? 1 / absmax : 0.0f;
}

// Moments first, as their largest make the scales; then codes and weights, whose long division the codes' arithmetic
// hides.
template <class G, class Kind>
HWY_INLINE void update_block(const AdamWFactors& f, const G* gradient, WeightsAt<Kind>& weights, size_t first,
                             const MapMoments& moments, const Maps& maps) {
  const Floats d;
  HWY_ALIGN float p[kBlock], new_m[kBlock], new_v[kBlock];
  const Decoder<kSigned> old_m(maps.m_tables, *moments.m_absmax);
  const Decoder<kUnsigned> old_v(maps.v_tables, *moments.v_absmax);
  FloatVector most_m = hn::Zero(d), most_v = hn::Zero(d);
  weights.begin_piece(first);
#pragma GCC unroll 2
  for (size_t i = 0; i < kBlock; i += kWidth) {
    const FloatVector old_p = weights.load(d, first + i);
    const auto now = adamw_moments<Choice::branch>(d, f, load_values(d, gradient + i), old_p,
                                                   {old_m(moments.m + i), old_v(moments.v + i)});
    hn::Store(old_p, d, p + i);
    hn::Store(now.m, d, new_m + i);
    hn::Store(now.v, d, new_v + i);
    most_m = hn::Max(most_m, hn::Abs(now.m));
    most_v = hn::Max(most_v, now.v);
  }
  *moments.m_absmax = hn::GetLane(hn::MaxOfLanes(d, most_m));
  *moments.v_absmax = hn::GetLane(hn::MaxOfLanes(d, most_v));
  const FloatVector m_scale = hn::Set(d, inverse(*moments.m_absmax)), v_scale = hn::Set(d, inverse(*moments.v_absmax));
  const auto moved = [&](size_t i) HWY_ATTR __attribute__((always_inline)) {
    return adamw_moved(d, f, hn::Load(d, p + i), {hn::Load(d, new_m + i), hn::Load(d, new_v + i)});
  };
  for (size_t i = 0; i < kBlock; i += 4 * kWidth) {
    FourCodes<Ints> codes;
#pragma GCC unroll 4
    for (size_t k = 0; k < 4; ++k) {
      const size_t at = i + k * kWidth;
      if (k % 2 == 0) weights.store_pair(d, moved(at), moved(at + kWidth), first + at);
      codes.set(k, maps.m(hn::Mul(hn::Load(d, new_m + at), m_scale)),
                maps.v(hn::Mul(hn::Load(d, new_v + at), v_scale)));
    }
    codes.store(moments.m + i, moments.v + i);
  }
}

/// A block of fewer elements: on copies, filled up with zeros.
template <class G, class Kind>
void update_rest(const AdamWFactors& f, const G* gradient, WeightsAt<Kind>& weights, size_t first, size_t count,
                 const MapMoments& moments, const Maps& maps) {
  const hn::CappedTag<float, 1> one;
  float g[kBlock] = {}, p[kBlock] = {};
  uint8_t m[kBlock], v[kBlock] = {};
  std::fill_n(m, kBlock, uint8_t{127});
  weights.begin_piece(first);
  for (size_t i = 0; i < count; ++i) {
    g[i] = hn::GetLane(load_values(one, gradient + i));
    p[i] = hn::GetLane(weights.load(one, first + i));
    m[i] = moments.m[i];
    v[i] = moments.v[i];
  }
  WeightsAt<Fp32Weights> copies(Fp32Weights{p});
  update_block(f, g, copies, 0, {m, v, moments.m_absmax, moments.v_absmax}, maps);
  for (size_t i = 0; i < count; ++i) {
    weights.store(one, hn::Set(one, p[i]), first + i);
    moments.m[i] = m[i];
    moments.v[i] = v[i];
  }
}

template <class G, class Kind>
void map_loop(const AdamWFactors& factors, size_t n, const G* gradient, const Kind& kind, const MapMoments& moments) {
  const AdamWFactors f = factors;
  const Maps maps;
  WeightsAt<Kind> weights(kind);
  for (size_t first = 0; first < n; first += kBlock) {
    const size_t block = first / kBlock;
    const MapMoments here{moments.m + first, moments.v + first, moments.m_absmax + block, moments.v_absmax + block};
    if (n - first < kBlock) return update_rest(f, gradient + first, weights, first, n - first, here, maps);
    prefetch(gradient + first + kAhead, kBlock);
    prefetch(here.m + kAhead, kBlock);
    prefetch(here.v + kAhead, kBlock);
    weights.prefetch_from(first + kAhead, kBlock);
    update_block(f, gradient + first, weights, first, here, maps);
  }
}

void adamw_map_any(const AdamWFactors& f, size_t n, const Gradient& gradient, const Weights& weights,
                   const MapMoments& moments) {
  std::visit([&](const auto* g, const auto& kind) { map_loop(f, n, g, kind, moments); }, gradient, weights);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(adamw_map_any);

void adamw_map(const AdamWFactors& f, int64_t n, const Gradient& gradient, const Weights& weights,
               const MapMoments& moments) {
  HWY_DYNAMIC_DISPATCH(adamw_map_any)(f, static_cast<size_t>(n), gradient, weights, moments);
}

}  // namespace sherd::kernels
#endif
