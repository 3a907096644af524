#include "sherd/kernels/rms_norm.h"

#include <cmath>
#include <cstddef>

// The lanes live in an array of vectors, which vectors of unknown length cannot be put in.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/rms_norm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kLanes = 32;  // virtual, as in norm.cpp

// The sum over [0, n) of left(tag, i) * x[i] in fp64, where left gives a vector of fp32 values.
template <class Left>
HWY_INLINE double dot(size_t n, const Left& left, const float* x) {
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
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

template <class Step>
HWY_INLINE void for_row(size_t n, const Step& step) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) step(d, i);
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) step(one, i);
}

void rms_norm_loop(const NormShape& shape, double eps, const float* x, const float* weight, float* y,
                   float* inverse_rms) {
  const size_t n = static_cast<size_t>(shape.dim);
  for (int64_t row = 0; row < shape.rows; ++row, x += n, y += n) {
    const double squares = dot(
        n, [x](auto d, size_t i) HWY_ATTR { return hn::LoadU(d, x + i); }, x);
    const float inverse = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n) + eps));
    inverse_rms[row] = inverse;
    for_row(n, [=](auto d, size_t i) HWY_ATTR {
      const auto scaled = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, inverse));
      hn::StoreU(hn::Mul(hn::LoadU(d, weight + i), scaled), d, y + i);
    });
  }
}

void rms_norm_backward_loop(const NormShape& shape, const float* x, const float* weight, const float* inverse_rms,
                            const float* gradient, const NormGradients& out) {
  const size_t n = static_cast<size_t>(shape.dim);
  float *dx = out.dx, *dweight = out.dweight;
  for (int64_t row = 0; row < shape.rows; ++row, x += n, gradient += n, dx += n) {
    const auto weighted = [=](auto d, size_t i)
                              HWY_ATTR { return hn::Mul(hn::LoadU(d, weight + i), hn::LoadU(d, gradient + i)); };
    const float inverse = inverse_rms[row];
    const double wide = inverse;
    const float along = static_cast<float>(wide * wide * wide * dot(n, weighted, x) / static_cast<double>(n));
    if (dweight != nullptr) {
      for_row(n, [=](auto d, size_t i) HWY_ATTR {
        const auto scaled = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, inverse));
        hn::StoreU(hn::Add(hn::LoadU(d, dweight + i), hn::Mul(hn::LoadU(d, gradient + i), scaled)), d, dweight + i);
      });
    }
    for_row(n, [=](auto d, size_t i) HWY_ATTR {
      const auto across = hn::Mul(hn::Set(d, inverse), weighted(d, i));
      hn::StoreU(hn::Sub(across, hn::Mul(hn::LoadU(d, x + i), hn::Set(d, along))), d, dx + i);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(rms_norm_loop);
HWY_EXPORT(rms_norm_backward_loop);

void rms_norm(const NormShape& shape, double eps, const float* x, const float* weight, float* y, float* inverse_rms) {
  HWY_DYNAMIC_DISPATCH(rms_norm_loop)(shape, eps, x, weight, y, inverse_rms);
}

void rms_norm_backward(const NormShape& shape, const float* x, const float* weight, const float* inverse_rms,
                       const float* gradient, const NormGradients& out) {
  HWY_DYNAMIC_DISPATCH(rms_norm_backward_loop)(shape, x, weight, inverse_rms, gradient, out);
}

}  // namespace sherd::kernels
#endif
