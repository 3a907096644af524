// What element-wise kernels share, their loop first: included after <hwy/highway.h>, once for each instruction set.
#if defined(SHERD_KERNELS_ELEMENTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_ELEMENTS_INL_H
#undef SHERD_KERNELS_ELEMENTS_INL_H
#else
#define SHERD_KERNELS_ELEMENTS_INL_H
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

/// Calls step(tag, i) over [0, n), in vectors and then element by element: the same operations, so the same rounding.
template <class Step>
HWY_INLINE void for_elements(size_t n, const Step& step) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) step(d, i);
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) step(one, i);
}

/// x, or 0 where it is smaller than the smallest normal number. NaN stays.
template <class D, class V>
HWY_INLINE V without_denormals(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  return hn::IfThenZeroElse(hn::Lt(hn::Abs(x), hn::Set(d, std::numeric_limits<float>::min())), x);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
