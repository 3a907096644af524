#include "sherd/kernels/lion.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/lion.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/map_inl.h"
#include "sherd/kernels/weights_inl.h"

#ifndef SHERD_KERNELS_LION_ONCE
#define SHERD_KERNELS_LION_ONCE
namespace sherd::kernels {

struct LionFactors {
  float gradient_scale, decay, rate;
  float beta1, g1_weight;  // 1 - beta1
  float beta2, g2_weight;
};

}  // namespace sherd::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

static_assert(kPiece == kMapBlock);
constexpr auto kSigned = DynamicMap::signed_values;

// No MulAdd: targets without it would round differently.

/// The parameter after a step from momentum m.
template <class D>
HWY_INLINE hn::Vec<D> lion_moved(D d, const LionFactors& f, hn::Vec<D> p, hn::Vec<D> g, hn::Vec<D> m) {
  const auto set = [d](float x) HWY_ATTR { return hn::Set(d, x); };
  const auto direction = hn::Add(hn::Mul(set(f.beta1), m), hn::Mul(set(f.g1_weight), g));
  const auto zero = hn::Eq(direction, hn::Zero(d));
  // What is no number stays none.
  const auto move = hn::IfThenElse(hn::Eq(direction, direction), hn::CopySignToAbs(set(f.rate), direction), direction);
  return hn::Sub(hn::Mul(p, set(f.decay)), hn::IfThenZeroElse(zero, move));
}

template <class D>
HWY_INLINE hn::Vec<D> lion_momentum(D d, const LionFactors& f, hn::Vec<D> g, hn::Vec<D> m) {
  const auto now = hn::Add(hn::Mul(hn::Set(d, f.beta2), m), hn::Mul(hn::Set(d, f.g2_weight), g));
  return without_denormals(d, now);
}

template <class D, class G>
HWY_INLINE hn::Vec<D> scaled(D d, const LionFactors& f, const G* gradient) {
  return hn::Mul(load_values(d, gradient), hn::Set(d, f.gradient_scale));
}

template <class G, class Kind>
void lion_loop(const LionFactors& factors, size_t n, const G* HWY_RESTRICT gradient, const Kind& kind,
               const Fp32Momentum& momentum) {
  const LionFactors f = factors;
  float* HWY_RESTRICT m = momentum.m;
  WeightsAt<Kind> weights(kind);
  for (size_t piece = 0; piece < n; piece += kPiece) {
    weights.begin_piece(piece);
    for_elements(std::min(kPiece, n - piece), [&](auto d, size_t k) HWY_ATTR {
      const size_t i = piece + k;
      const auto g = scaled(d, f, gradient + i), old = hn::LoadU(d, m + i);
      weights.store(d, lion_moved(d, f, weights.load(d, i), g, old), i);
      hn::StoreU(lion_momentum(d, f, g, old), d, m + i);
    });
  }
}

/// Updates one whole block: load(place) gives weights, store(vector, place) takes them.
template <class G, class Load, class Store>
HWY_INLINE void update_block(const LionFactors& f, const G* gradient, const Load& load, const Store& store,
                             uint8_t* codes, float& absmax) {
  const Floats d;
  HWY_ALIGN float now[kMapBlock];
  const MapTables& tables = map_tables(kSigned);
  const Decoder<kSigned> old(tables, absmax);
  FloatVector most = hn::Zero(d);
  for (size_t i = 0; i < kPiece; i += kWidth) {
    const auto g = scaled(d, f, gradient + i);
    const FloatVector m = old(codes + i);
    store(lion_moved(d, f, load(i), g, m), i);
    const FloatVector next = lion_momentum(d, f, g, m);
    hn::Store(next, d, now + i);
    most = hn::Max(most, hn::Abs(next));
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  absmax = largest < std::numeric_limits<float>::min() ? 0.0f : largest;
  if (absmax == 0.0f) {
    std::fill_n(codes, kPiece, uint8_t{127});
    return;
  }
  const Encoder<kSigned> encoder(tables);
  for (size_t i = 0; i < kPiece; i += kWidth) {
    const FloatVector value = hn::Div(hn::Load(d, now + i), hn::Set(d, absmax));
    const Indices found = encoder.indices(hn::Abs(value));
    store_codes<kSigned>(HWY_UNLIKELY(found.unsure()) ? encoder.searched(hn::Abs(value)) : found.index, value,
                         codes + i);
  }
}

template <class G, class Kind>
void update_rest(const LionFactors& f, const G* gradient, WeightsAt<Kind>& weights, size_t first, size_t count,
                 uint8_t* codes, float& absmax) {
  const Floats d;
  const hn::CappedTag<float, 1> one;
  float g[kPiece] = {}, p[kPiece] = {};
  uint8_t padded[kPiece];
  std::fill_n(padded, kPiece, uint8_t{127});
  std::copy_n(codes, count, padded);
  for (size_t i = 0; i < count; ++i) {
    g[i] = hn::GetLane(load_values(one, gradient + i));
    p[i] = hn::GetLane(weights.load(one, first + i));
  }
  update_block(
      f, g, [&](size_t i) HWY_ATTR { return hn::LoadU(d, p + i); },
      [&](FloatVector x, size_t i) HWY_ATTR { hn::StoreU(x, d, p + i); }, padded, absmax);
  for (size_t i = 0; i < count; ++i) weights.store(one, hn::Set(one, p[i]), first + i);
  std::copy_n(padded, count, codes);
}

// A block of fewer elements is updated on copies, filled up with zeros.
template <class G, class Kind>
void lion_loop(const LionFactors& factors, size_t n, const G* gradient, const Kind& kind, const MapMomentum& momentum) {
  const LionFactors f = factors;
  const Floats d;
  WeightsAt<Kind> weights(kind);
  for (size_t first = 0; first < n; first += kPiece) {
    uint8_t* codes = momentum.m + first;
    float& absmax = momentum.absmax[first / kPiece];
    weights.begin_piece(first);
    if (n - first < kPiece) return update_rest(f, gradient + first, weights, first, n - first, codes, absmax);
    update_block(
        f, gradient + first, [&](size_t i) HWY_ATTR { return weights.load(d, first + i); },
        [&](FloatVector x, size_t i) HWY_ATTR { weights.store(d, x, first + i); }, codes, absmax);
  }
}

void lion_any(const LionFactors& f, size_t n, const Gradient& gradient, const Weights& weights,
              const Momentum& momentum) {
  std::visit([&](const auto* g, const auto& kind, const auto& m) { lion_loop(f, n, g, kind, m); }, gradient, weights,
             momentum);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(lion_any);

namespace {

Fp32Momentum momentum_from(const Fp32Momentum& momentum, int64_t i) { return {momentum.m + i}; }
MapMomentum momentum_from(const MapMomentum& momentum, int64_t i) {
  return {momentum.m + i, momentum.absmax + i / kMapBlock};
}

}  // namespace

Momentum from(const Momentum& momentum, int64_t i) {
  return std::visit([i](const auto& kind) { return Momentum(momentum_from(kind, i)); }, momentum);
}

void lion(const LionScalars& s, int64_t n, const Gradient& gradient, const Weights& weights, const Momentum& momentum) {
  const LionFactors factors{.gradient_scale = static_cast<float>(s.gradient_scale),
                            .decay = static_cast<float>(1.0 - s.lr * s.weight_decay),
                            .rate = static_cast<float>(s.lr),
                            .beta1 = static_cast<float>(s.beta1),
                            .g1_weight = static_cast<float>(1.0 - s.beta1),
                            .beta2 = static_cast<float>(s.beta2),
                            .g2_weight = static_cast<float>(1.0 - s.beta2)};
  HWY_DYNAMIC_DISPATCH(lion_any)(factors, static_cast<size_t>(n), gradient, weights, momentum);
}

}  // namespace sherd::kernels
#endif
