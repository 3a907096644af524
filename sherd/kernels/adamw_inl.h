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

template <class D>
struct MomentPair {
  hn::Vec<D> m, v;
};

// No MulAdd here: targets without it would round differently.

/// How what holds for a whole loop is chosen in it: by more arithmetic, which loops bound by memory hide (a branch
/// costs them 4 %), or by a branch, which spares others the arithmetic.
enum class Choice { arithmetic, branch };

/// The moments after a step.
template <Choice kChoice, class D>
HWY_INLINE MomentPair<D> adamw_moments(D d, const AdamWFactors& f, hn::Vec<D> gradient, hn::Vec<D> p,
                                       const MomentPair<D>& old) {
  const auto set = [d](float x) HWY_ATTR { return hn::Set(d, x); };
  auto g = hn::Mul(gradient, set(f.gradient_scale));
  hn::Vec<D> from;
  if constexpr (kChoice == Choice::branch) {
    if (f.l2 != 0) g = hn::Add(g, hn::Mul(set(f.l2), p));
    from = f.lerp_from_m == 1 ? old.m : g;
  } else {
    g = hn::Add(g, hn::Mul(set(f.l2), p));
    from = hn::IfThenElse(hn::Eq(set(f.lerp_from_m), set(1.0f)), old.m, g);
  }
  const auto m = hn::Add(from, hn::Mul(set(f.m_weight), hn::Sub(g, old.m)));
  const auto v = hn::Add(hn::Mul(set(f.beta2), old.v), hn::Mul(hn::Mul(set(f.g2_weight), g), g));
  return {m, v};
}

/// The parameter after a step that has given these moments.
template <class D>
HWY_INLINE hn::Vec<D> adamw_moved(D d, const AdamWFactors& f, hn::Vec<D> p, const MomentPair<D>& now) {
  const auto set = [d](float x) HWY_ATTR { return hn::Set(d, x); };
  const auto move = hn::Div(hn::Mul(set(f.rate), now.m), hn::Add(hn::Sqrt(now.v), set(f.eps)));
  return hn::Sub(hn::Mul(p, set(f.decay)), move);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
