// The arithmetic of kernels/adamw.h on one vector: included after <hwy/highway.h>, once for each instruction set.
#if defined(SHERD_KERNELS_ADAMW_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_ADAMW_INL_H
#undef SHERD_KERNELS_ADAMW_INL_H
#else
#define SHERD_KERNELS_ADAMW_INL_H
#endif

#include <hwy/highway.h>

#include "sherd/kernels/adamw_factors.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The parameter and its moments, before or after a step.
template <class D>
struct AdamWValues {
  hn::Vec<D> p, m, v;
};

/// No MulAdd here: targets without it would round differently.
template <class D>
HWY_INLINE AdamWValues<D> adamw_step(D d, const AdamWFactors& f, hn::Vec<D> gradient, const AdamWValues<D>& old) {
  const auto set = [d](float x) HWY_ATTR { return hn::Set(d, x); };
  const auto g = hn::Add(hn::Mul(gradient, set(f.gradient_scale)), hn::Mul(set(f.l2), old.p));
  const auto from_m = hn::Eq(set(f.lerp_from_m), set(1.0f));
  const auto m = hn::Add(hn::IfThenElse(from_m, old.m, g), hn::Mul(set(f.m_weight), hn::Sub(g, old.m)));
  const auto v = hn::Add(hn::Mul(set(f.beta2), old.v), hn::Mul(hn::Mul(set(f.g2_weight), g), g));
  const auto move = hn::Div(hn::Mul(set(f.rate), m), hn::Add(hn::Sqrt(v), set(f.eps)));
  return {hn::Sub(hn::Mul(old.p, set(f.decay)), move), m, v};
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
