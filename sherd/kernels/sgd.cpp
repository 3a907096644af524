#include "sherd/kernels/sgd.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/sgd.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"

#ifndef SHERD_KERNELS_SGD_ONCE
#define SHERD_KERNELS_SGD_ONCE
namespace sherd::kernels {

struct SgdFactors {
  float gradient_scale, weight_decay, momentum, lr;
};

enum class SgdKind { plain, momentum, nesterov };

}  // namespace sherd::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector, or with a vector of one lane one element. No MulAdd: targets without it would round differently.
template <SgdKind kKind, class D>
HWY_INLINE void sgd_step(D d, const SgdFactors& f, const float* gradient, float* parameter, float* momentum) {
  const auto p = hn::LoadU(d, parameter);
  const auto scaled = hn::Mul(hn::LoadU(d, gradient), hn::Set(d, f.gradient_scale));
  const auto g = hn::Add(scaled, hn::Mul(hn::Set(d, f.weight_decay), p));
  auto direction = g;
  if constexpr (kKind != SgdKind::plain) {
    const auto b = hn::Add(hn::Mul(hn::Set(d, f.momentum), hn::LoadU(d, momentum)), g);
    hn::StoreU(without_denormals(d, b), d, momentum);
    direction = b;
    if constexpr (kKind == SgdKind::nesterov) direction = hn::Add(g, hn::Mul(hn::Set(d, f.momentum), b));
  }
  hn::StoreU(hn::Sub(p, hn::Mul(hn::Set(d, f.lr), direction)), d, parameter);
}

template <SgdKind kKind>
HWY_INLINE void sgd_loop(const SgdFactors& factors, size_t n, const float* HWY_RESTRICT gradient,
                         float* HWY_RESTRICT parameter, float* HWY_RESTRICT momentum) {
  const SgdFactors f = factors;
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto buffer = [&](size_t i) { return kKind == SgdKind::plain ? nullptr : momentum + i; };
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    sgd_step<kKind>(d, f, gradient + i, parameter + i, buffer(i));
    sgd_step<kKind>(d, f, gradient + i + lanes, parameter + i + lanes, buffer(i + lanes));
  }
  const hn::CappedTag<float, 1> one;
  for (; i < n; ++i) sgd_step<kKind>(one, f, gradient + i, parameter + i, buffer(i));
}

void plain_loop(const SgdFactors& f, size_t n, const float* gradient, float* parameter) {
  sgd_loop<SgdKind::plain>(f, n, gradient, parameter, nullptr);
}
void momentum_loop(const SgdFactors& f, size_t n, const float* gradient, float* parameter, float* momentum) {
  sgd_loop<SgdKind::momentum>(f, n, gradient, parameter, momentum);
}
void nesterov_loop(const SgdFactors& f, size_t n, const float* gradient, float* parameter, float* momentum) {
  sgd_loop<SgdKind::nesterov>(f, n, gradient, parameter, momentum);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(plain_loop);
HWY_EXPORT(momentum_loop);
HWY_EXPORT(nesterov_loop);

namespace {

SgdFactors sgd_factors(const SgdScalars& s) {
  return {static_cast<float>(s.gradient_scale), static_cast<float>(s.weight_decay), static_cast<float>(s.momentum),
          static_cast<float>(s.lr)};
}

}  // namespace

void sgd(const SgdScalars& s, int64_t n, const float* gradient, float* parameter) {
  HWY_DYNAMIC_DISPATCH(plain_loop)(sgd_factors(s), static_cast<size_t>(n), gradient, parameter);
}

void sgd_momentum(const SgdScalars& s, int64_t n, const float* gradient, float* parameter, float* momentum) {
  HWY_DYNAMIC_DISPATCH(momentum_loop)(sgd_factors(s), static_cast<size_t>(n), gradient, parameter, momentum);
}

void sgd_nesterov(const SgdScalars& s, int64_t n, const float* gradient, float* parameter, float* momentum) {
  HWY_DYNAMIC_DISPATCH(nesterov_loop)(sgd_factors(s), static_cast<size_t>(n), gradient, parameter, momentum);
}

}  // namespace sherd::kernels
#endif
