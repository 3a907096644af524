#include "sherd/kernels/adamw.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/adamw.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"

#ifndef SHERD_KERNELS_ADAMW_ONCE
#define SHERD_KERNELS_ADAMW_ONCE
namespace sherd::kernels {

// What the loop needs, derived once in fp64. lerp(m, g, w) is m + w (g - m) for w < 0.5 and g + (w - 1) (g - m) above,
// so that it is exact at both ends.
struct AdamWFactors {
  float gradient_scale;
  float decay;        // adamw: 1 - lr * weight_decay
  float l2;           // adam: weight_decay
  float m_weight;     // w or w - 1
  float lerp_from_m;  // 1: from m with w; 0: from g with w - 1
  float beta2;
  float g2_weight;  // 1 - beta2
  float rate;       // lr * bias_correction2_sqrt / bias_correction1
  float eps;        // eps * bias_correction2_sqrt
};

enum class WeightDecay { decoupled, l2 };

}  // namespace sherd::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector, or with a vector of one lane one element: the same operations, so the same rounding. No MulAdd here:
// targets without it would round differently.
template <WeightDecay kDecay, class D>
HWY_INLINE void adamw_step(D d, const AdamWFactors& f, const float* gradient, float* parameter, float* m, float* v) {
  const auto old_p = hn::LoadU(d, parameter);
  auto g = hn::Mul(hn::LoadU(d, gradient), hn::Set(d, f.gradient_scale));
  if constexpr (kDecay == WeightDecay::l2) g = hn::Add(g, hn::Mul(hn::Set(d, f.l2), old_p));
  const auto old_m = hn::LoadU(d, m);
  const auto from_m = hn::Eq(hn::Set(d, f.lerp_from_m), hn::Set(d, 1.0f));
  const auto new_m = hn::Add(hn::IfThenElse(from_m, old_m, g), hn::Mul(hn::Set(d, f.m_weight), hn::Sub(g, old_m)));
  const auto new_v =
      hn::Add(hn::Mul(hn::Set(d, f.beta2), hn::LoadU(d, v)), hn::Mul(hn::Mul(hn::Set(d, f.g2_weight), g), g));
  const auto move = hn::Div(hn::Mul(hn::Set(d, f.rate), new_m), hn::Add(hn::Sqrt(new_v), hn::Set(d, f.eps)));
  auto kept = old_p;
  if constexpr (kDecay == WeightDecay::decoupled) kept = hn::Mul(old_p, hn::Set(d, f.decay));
  const auto p = hn::Sub(kept, move);
  hn::StoreU(without_denormals(d, new_m), d, m);
  hn::StoreU(without_denormals(d, new_v), d, v);
  hn::StoreU(p, d, parameter);
}

template <WeightDecay kDecay>
HWY_INLINE void update_loop(const AdamWFactors& factors, size_t n, const float* HWY_RESTRICT gradient,
                            float* HWY_RESTRICT parameter, float* HWY_RESTRICT m, float* HWY_RESTRICT v) {
  const AdamWFactors f = factors;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kAhead = 512;  // floats
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    // The hardware's prefetchers stop at each 4 KiB page, with four streams at once. Beyond the end it does nothing.
    for (size_t line = 0; line < 2 * lanes; line += 64 / sizeof(float)) {
      for (const float* stream :
           {gradient, static_cast<const float*>(parameter), static_cast<const float*>(m), static_cast<const float*>(v)})
        hwy::Prefetch(stream + i + line + kAhead);
    }
    adamw_step<kDecay>(d, f, gradient + i, parameter + i, m + i, v + i);
    const size_t j = i + lanes;
    adamw_step<kDecay>(d, f, gradient + j, parameter + j, m + j, v + j);
  }
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) adamw_step<kDecay>(one, f, gradient + i, parameter + i, m + i, v + i);
}

void adamw_loop(const AdamWFactors& factors, size_t n, const float* gradient, float* parameter, float* m, float* v) {
  update_loop<WeightDecay::decoupled>(factors, n, gradient, parameter, m, v);
}
void adam_loop(const AdamWFactors& factors, size_t n, const float* gradient, float* parameter, float* m, float* v) {
  update_loop<WeightDecay::l2>(factors, n, gradient, parameter, m, v);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(adamw_loop);
HWY_EXPORT(adam_loop);

namespace {

AdamWFactors adamw_factors(const AdamWScalars& s) {
  const double w = 1.0 - s.beta1;
  return {
      .gradient_scale = static_cast<float>(s.gradient_scale),
      .decay = static_cast<float>(1.0 - s.lr * s.weight_decay),
      .l2 = static_cast<float>(s.weight_decay),
      .m_weight = static_cast<float>(w < 0.5 ? w : w - 1.0),
      .lerp_from_m = w < 0.5 ? 1.0f : 0.0f,
      .beta2 = static_cast<float>(s.beta2),
      .g2_weight = static_cast<float>(1.0 - s.beta2),
      .rate = static_cast<float>(s.lr * s.bias_correction2_sqrt / s.bias_correction1),
      .eps = static_cast<float>(s.eps * s.bias_correction2_sqrt),
  };
}

}  // namespace

void adamw(const AdamWScalars& s, int64_t n, const float* gradient, float* parameter, float* m, float* v) {
  HWY_DYNAMIC_DISPATCH(adamw_loop)(adamw_factors(s), static_cast<size_t>(n), gradient, parameter, m, v);
}

void adam(const AdamWScalars& s, int64_t n, const float* gradient, float* parameter, float* m, float* v) {
  HWY_DYNAMIC_DISPATCH(adam_loop)(adamw_factors(s), static_cast<size_t>(n), gradient, parameter, m, v);
}

}  // namespace sherd::kernels
#endif
