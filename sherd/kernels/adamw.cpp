#include "sherd/kernels/adamw.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/adamw.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef SHERD_KERNELS_ADAMW_ONCE
#define SHERD_KERNELS_ADAMW_ONCE
namespace sherd::kernels {

// What the loop needs, derived once in fp64. lerp(m, g, w) is m + w (g - m) for w < 0.5 and g + (w - 1) (g - m) above,
// so that it is exact at both ends.
struct AdamWFactors {
  float gradient_scale;
  float decay;        // 1 - lr * weight_decay
  float m_weight;     // w or w - 1
  float lerp_from_m;  // 1: from m with w; 0: from g with w - 1
  float beta2;
  float g2_weight;  // 1 - beta2
  float rate;       // lr * bias_correction2_sqrt / bias_correction1
  float eps;        // eps * bias_correction2_sqrt
};

}  // namespace sherd::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector, or with a vector of one lane one element: the same operations, so the same rounding. No MulAdd here:
// targets without it would round differently.
template <class D>
HWY_INLINE void adamw_step(D d, const AdamWFactors& f, const float* gradient, float* parameter, float* m, float* v) {
  const auto g = hn::Mul(hn::LoadU(d, gradient), hn::Set(d, f.gradient_scale));
  const auto old_m = hn::LoadU(d, m);
  const auto from_m = hn::Eq(hn::Set(d, f.lerp_from_m), hn::Set(d, 1.0f));
  const auto new_m = hn::Add(hn::IfThenElse(from_m, old_m, g), hn::Mul(hn::Set(d, f.m_weight), hn::Sub(g, old_m)));
  const auto new_v =
      hn::Add(hn::Mul(hn::Set(d, f.beta2), hn::LoadU(d, v)), hn::Mul(hn::Mul(hn::Set(d, f.g2_weight), g), g));
  const auto move = hn::Div(hn::Mul(hn::Set(d, f.rate), new_m), hn::Add(hn::Sqrt(new_v), hn::Set(d, f.eps)));
  const auto p = hn::Sub(hn::Mul(hn::LoadU(d, parameter), hn::Set(d, f.decay)), move);
  hn::StoreU(new_m, d, m);
  hn::StoreU(new_v, d, v);
  hn::StoreU(p, d, parameter);
}

void adamw_loop(const AdamWFactors& factors, size_t n, const float* HWY_RESTRICT gradient,
                float* HWY_RESTRICT parameter, float* HWY_RESTRICT m, float* HWY_RESTRICT v) {
  const AdamWFactors f = factors;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    adamw_step(d, f, gradient + i, parameter + i, m + i, v + i);
    const size_t j = i + lanes;
    adamw_step(d, f, gradient + j, parameter + j, m + j, v + j);
  }
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) adamw_step(one, f, gradient + i, parameter + i, m + i, v + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(adamw_loop);

void adamw(const AdamWScalars& s, int64_t n, const float* gradient, float* parameter, float* m, float* v) {
  const double w = 1.0 - s.beta1;
  const AdamWFactors factors{
      .gradient_scale = static_cast<float>(s.gradient_scale),
      .decay = static_cast<float>(1.0 - s.lr * s.weight_decay),
      .m_weight = static_cast<float>(w < 0.5 ? w : w - 1.0),
      .lerp_from_m = w < 0.5 ? 1.0f : 0.0f,
      .beta2 = static_cast<float>(s.beta2),
      .g2_weight = static_cast<float>(1.0 - s.beta2),
      .rate = static_cast<float>(s.lr * s.bias_correction2_sqrt / s.bias_correction1),
      .eps = static_cast<float>(s.eps * s.bias_correction2_sqrt),
  };
  HWY_DYNAMIC_DISPATCH(adamw_loop)(factors, static_cast<size_t>(n), gradient, parameter, m, v);
}

}  // namespace sherd::kernels
#endif
