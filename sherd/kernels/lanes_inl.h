// Sums of one order on every instruction set: over 32 virtual lanes, which a fixed tree folds. Included after
// <hwy/highway.h>, once for each instruction set, in sources that disable the targets of vectors of unknown length: the
// lanes live in an array of vectors.
#if defined(SHERD_KERNELS_LANES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_LANES_INL_H
#undef SHERD_KERNELS_LANES_INL_H
#else
#define SHERD_KERNELS_LANES_INL_H
#endif

#include <hwy/highway.h>

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

constexpr size_t kLanes = 32;  // of doubles 4 registers of AVX-512, 8 of AVX2, 16 of SSE; of floats half as many

/// The sum of all lanes, which are overwritten.
template <class T>
HWY_INLINE T fold_lanes(T* lane) {
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

/// The sum over [0, n) of left(tag, i) * x[i] in fp64, where left gives a vector of fp32 values.
template <class Left>
HWY_INLINE double wide_dot(size_t n, const Left& left, const float* x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> d_float;
  const hn::CappedTag<float, 1> one;
  constexpr size_t kWidth = hn::MaxLanes(d), kVectors = kLanes / kWidth;
  hn::Vec<decltype(d)> sums[kVectors];
  for (auto& sum : sums) sum = hn::Zero(d);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    // Unrolled the sums stay in registers; -O2 alone would leave them on the stack.
#pragma GCC unroll 16
    for (size_t k = 0; k < kVectors; ++k) {
      const size_t at = i + k * kWidth;
      sums[k] =
          hn::Add(sums[k], hn::Mul(hn::PromoteTo(d, left(d_float, at)), hn::PromoteTo(d, hn::LoadU(d_float, x + at))));
    }
  }
  HWY_ALIGN double lane[kLanes];
  for (size_t k = 0; k < kVectors; ++k) hn::Store(sums[k], d, lane + k * kWidth);
  for (size_t k = 0; i < n; ++i, ++k) lane[k] += static_cast<double>(hn::GetLane(left(one, i))) * x[i];
  return fold_lanes(lane);
}

/// The sum of squares in fp64.
HWY_INLINE double wide_squares(size_t n, const float* x) {
  namespace hn = hwy::HWY_NAMESPACE;
  return wide_dot(
      n, [x](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, x + i); }, x);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
