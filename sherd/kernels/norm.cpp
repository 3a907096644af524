#include "sherd/kernels/norm.h"

#include <cstddef>

// The lanes live in an array of vectors, which vectors of unknown length cannot be put in.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/norm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kLanes = 32;  // virtual: 4 registers of AVX-512, 8 of AVX2, 16 of SSE

double sum_of_squares_loop(const float* HWY_RESTRICT x, size_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> d_float;
  constexpr size_t kWidth = hn::MaxLanes(d);
  constexpr size_t kVectors = kLanes / kWidth;
  hn::Vec<decltype(d)> sums[kVectors];
  for (auto& sum : sums) sum = hn::Zero(d);

  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    // Unrolled the sums stay in registers; -O2 alone would leave them on the stack.
#pragma GCC unroll 16
    for (size_t k = 0; k < kVectors; ++k) {
      const auto y = hn::PromoteTo(d, hn::LoadU(d_float, x + i + k * kWidth));
      sums[k] = hn::Add(sums[k], hn::Mul(y, y));
    }
  }
  HWY_ALIGN double lane[kLanes];
  for (size_t k = 0; k < kVectors; ++k) hn::Store(sums[k], d, lane + k * kWidth);
  for (size_t k = 0; i < n; ++i, ++k) lane[k] += static_cast<double>(x[i]) * x[i];
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(sum_of_squares_loop);

double sum_of_squares(const float* x, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares_loop)(x, static_cast<size_t>(n));
}

}  // namespace sherd::kernels
#endif
