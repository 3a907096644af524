#include "sherd/kernels/rms_norm.h"

#include <cmath>
#include <cstddef>

// The lanes live in an array of vectors, which vectors of unknown length cannot be put in.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/rms_norm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/lanes_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void rms_norm_loop(const NormShape& shape, double eps, const float* x, const float* weight, float* y,
                   float* inverse_rms) {
  const size_t n = static_cast<size_t>(shape.dim);
  for (int64_t row = 0; row < shape.rows; ++row, x += n, y += n) {
    const float inverse = static_cast<float>(1.0 / std::sqrt(wide_squares(n, x) / static_cast<double>(n) + eps));
    inverse_rms[row] = inverse;
    for_elements(n, [=](auto d, size_t i) HWY_ATTR {
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
    const float along = static_cast<float>(wide * wide * wide * wide_dot(n, weighted, x) / static_cast<double>(n));
    if (dweight != nullptr) {
      for_elements(n, [=](auto d, size_t i) HWY_ATTR {
        const auto scaled = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, inverse));
        hn::StoreU(hn::Add(hn::LoadU(d, dweight + i), hn::Mul(hn::LoadU(d, gradient + i), scaled)), d, dweight + i);
      });
    }
    for_elements(n, [=](auto d, size_t i) HWY_ATTR {
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
