#include "sherd/kernels/adamw.h"

#include <algorithm>
#include <cstddef>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/adamw.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/adamw_inl.h"
#include "sherd/kernels/dynamic_map.h"
#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/weights_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

constexpr size_t kAhead = 128;  // elements: about as long as memory takes to answer

template <class G, class Kind>
void fp32_loop(const AdamWFactors& factors, size_t n, const G* HWY_RESTRICT gradient, const Kind& kind,
               float* HWY_RESTRICT m, float* HWY_RESTRICT v) {
  const AdamWFactors f = factors;
  WeightsAt<Kind> weights(kind);
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const size_t lanes = hn::Lanes(d);
  // With a vector of one lane the same operations, so the same rounding.
  const auto step = [&](auto tag, size_t i) HWY_ATTR __attribute__((always_inline)) {
    const auto p = weights.load(tag, i);
    const auto now = adamw_moments<Choice::arithmetic>(tag, f, load_values(tag, gradient + i), p,
                                                       {hn::LoadU(tag, m + i), hn::LoadU(tag, v + i)});
    hn::StoreU(without_denormals(tag, now.m), tag, m + i);
    hn::StoreU(without_denormals(tag, now.v), tag, v + i);
    weights.store(tag, adamw_moved(tag, f, p, now), i);
  };
  for (size_t piece = 0; piece < n; piece += kPiece) {
    weights.begin_piece(piece);
    const size_t end = std::min(n, piece + kPiece);
    size_t i = piece;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      prefetch(gradient + i + kAhead, 2 * lanes);
      prefetch(m + i + kAhead, 2 * lanes);
      prefetch(v + i + kAhead, 2 * lanes);
      weights.prefetch_from(i + kAhead, 2 * lanes);
      step(d, i);
      step(d, i + lanes);
    }
    for (; i < end; ++i) step(one, i);
  }
}

void adamw_fp32_any(const AdamWFactors& f, size_t n, const Gradient& gradient, const Weights& weights,
                    const Fp32Moments& moments) {
  std::visit([&](const auto* g, const auto& kind) { fp32_loop(f, n, g, kind, moments.m, moments.v); }, gradient,
             weights);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(adamw_fp32_any);

namespace {

AdamWFactors adamw_factors(const AdamWScalars& s) {
  const double w = 1.0 - s.beta1;
  return {
      .gradient_scale = static_cast<float>(s.gradient_scale),
      .decay = static_cast<float>(1.0 - s.lr * s.weight_decay),
      .l2 = static_cast<float>(s.l2),
      .m_weight = static_cast<float>(w < 0.5 ? w : w - 1.0),
      .lerp_from_m = w < 0.5 ? 1.0f : 0.0f,
      .beta2 = static_cast<float>(s.beta2),
      .g2_weight = static_cast<float>(1.0 - s.beta2),
      .rate = static_cast<float>(s.lr * s.bias_correction2_sqrt / s.bias_correction1),
      .eps = static_cast<float>(s.eps * s.bias_correction2_sqrt),
  };
}

void run(const AdamWFactors& f, int64_t n, const Gradient& g, const Weights& w, const Fp32Moments& moments) {
  HWY_DYNAMIC_DISPATCH(adamw_fp32_any)(f, static_cast<size_t>(n), g, w, moments);
}
void run(const AdamWFactors& f, int64_t n, const Gradient& g, const Weights& w, const MapMoments& moments) {
  adamw_map(f, n, g, w, moments);
}

Fp32Moments moments_from(const Fp32Moments& s, int64_t i) { return {s.m + i, s.v + i}; }
MapMoments moments_from(const MapMoments& s, int64_t i) {
  return {s.m + i, s.v + i, s.m_absmax + i / kMapBlock, s.v_absmax + i / kMapBlock};
}

}  // namespace

Moments from(const Moments& moments, int64_t i) {
  return std::visit([i](const auto& kind) { return Moments(moments_from(kind, i)); }, moments);
}

void adamw(const AdamWScalars& s, int64_t n, const Gradient& gradient, const Weights& weights, const Moments& moments) {
  const AdamWFactors f = adamw_factors(s);
  std::visit([&](const auto& kind) { run(f, n, gradient, weights, kind); }, moments);
}

}  // namespace sherd::kernels
#endif
