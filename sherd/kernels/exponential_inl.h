// exp for kernels: included after <hwy/highway.h>, once for each instruction set.
//
// Within 1 unit in the last place of exp(x), subnormal results too; infinity above 88.73, NaN for NaN. The same bits on
// every instruction set: no fused multiply-add.
#if defined(SHERD_KERNELS_EXPONENTIAL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_EXPONENTIAL_INL_H
#undef SHERD_KERNELS_EXPONENTIAL_INL_H
#else
#define SHERD_KERNELS_EXPONENTIAL_INL_H
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

/// exp(x) = 2^n exp(r) with |r| <= ln(2)/2, where exp(r) = 1 + r + r^2 q(r).
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V exponential_of(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> d_int;
  const auto set = [d](float value) { return hn::Set(d, value); };
  const auto clamped = hn::Min(hn::Max(x, set(-105.0f)), set(89.0f));
  const auto n = hn::Round(hn::Mul(clamped, set(1.44269504f)));
  // ln(2) in two pieces: the first has 9 bits, so that n times it is exact.
  const auto r = hn::Sub(hn::Sub(clamped, hn::Mul(n, set(0.693359375f))), hn::Mul(n, set(-2.12194440e-4f)));
  // The polynomial for (exp(r) - 1 - r) / r^2 whose largest relative error in exp(r) is least: 3e-9.
  auto q = set(1.3814539416e-3f);
  for (const float c : {8.3687454462e-3f, 4.1668388993e-2f, 1.6666521132e-1f, 4.9999994040e-1f})
    q = hn::Add(hn::Mul(q, r), set(c));
  const auto e = hn::Add(set(1.0f), hn::Add(r, hn::Mul(hn::Mul(r, r), q)));
  // 2^n in two factors, each a normal number.
  const auto power = hn::ConvertTo(d_int, n);
  const auto half = hn::ShiftRight<1>(power);
  const auto two_to = [&](auto k) { return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(k, hn::Set(d_int, 127)))); };
  const auto result = hn::Mul(hn::Mul(e, two_to(half)), two_to(hn::Sub(power, half)));
  return hn::IfThenElse(hn::Eq(x, x), result, x);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();
#endif
