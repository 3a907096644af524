#include "sherd/kernels/sgd.h"

#include <algorithm>
#include <cstddef>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/sgd.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/weights_inl.h"

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

// No MulAdd: targets without it would round differently.
template <SgdKind kKind, class G, class Kind>
void sgd_loop(const SgdFactors& factors, size_t n, const G* HWY_RESTRICT gradient, const Kind& kind,
              float* HWY_RESTRICT momentum) {
  const SgdFactors f = factors;
  WeightsAt<Kind> weights(kind);
  for (size_t piece = 0; piece < n; piece += kPiece) {
    weights.begin_piece(piece);
    for_elements(std::min(kPiece, n - piece), [&](auto d, size_t k) HWY_ATTR {
      const size_t i = piece + k;
      const auto p = weights.load(d, i);
      const auto scaled = hn::Mul(load_values(d, gradient + i), hn::Set(d, f.gradient_scale));
      const auto g = hn::Add(scaled, hn::Mul(hn::Set(d, f.weight_decay), p));
      auto direction = g;
      if constexpr (kKind != SgdKind::plain) {
        const auto b = hn::Add(hn::Mul(hn::Set(d, f.momentum), hn::LoadU(d, momentum + i)), g);
        hn::StoreU(without_denormals(d, b), d, momentum + i);
        direction = b;
        if constexpr (kKind == SgdKind::nesterov) direction = hn::Add(g, hn::Mul(hn::Set(d, f.momentum), b));
      }
      weights.store(d, hn::Sub(p, hn::Mul(hn::Set(d, f.lr), direction)), i);
    });
  }
}

template <SgdKind kKind>
void sgd_any(const SgdFactors& f, size_t n, const Gradient& gradient, const Weights& weights, float* momentum) {
  std::visit([&](const auto* g, const auto& kind) { sgd_loop<kKind>(f, n, g, kind, momentum); }, gradient, weights);
}

void plain_loop(const SgdFactors& f, size_t n, const Gradient& gradient, const Weights& weights, float* momentum) {
  sgd_any<SgdKind::plain>(f, n, gradient, weights, momentum);
}
void momentum_loop(const SgdFactors& f, size_t n, const Gradient& gradient, const Weights& weights, float* momentum) {
  sgd_any<SgdKind::momentum>(f, n, gradient, weights, momentum);
}
void nesterov_loop(const SgdFactors& f, size_t n, const Gradient& gradient, const Weights& weights, float* momentum) {
  sgd_any<SgdKind::nesterov>(f, n, gradient, weights, momentum);
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

void sgd(const SgdScalars& s, int64_t n, const Gradient& gradient, const Weights& weights) {
  HWY_DYNAMIC_DISPATCH(plain_loop)(sgd_factors(s), static_cast<size_t>(n), gradient, weights, nullptr);
}

void sgd_momentum(const SgdScalars& s, int64_t n, const Gradient& gradient, const Weights& weights, float* momentum) {
  HWY_DYNAMIC_DISPATCH(momentum_loop)(sgd_factors(s), static_cast<size_t>(n), gradient, weights, momentum);
}

void sgd_nesterov(const SgdScalars& s, int64_t n, const Gradient& gradient, const Weights& weights, float* momentum) {
  HWY_DYNAMIC_DISPATCH(nesterov_loop)(sgd_factors(s), static_cast<size_t>(n), gradient, weights, momentum);
}

}  // namespace sherd::kernels
#endif
