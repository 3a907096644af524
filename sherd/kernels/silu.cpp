#include "sherd/kernels/silu.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/silu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/exponential_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 1 + exp(-x): what a sigmoid divides by.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid_divisor(D d, V x) {
  return hn::Add(hn::Set(d, 1.0f), exponential_of(d, hn::Neg(x)));
}

void exponential_loop(size_t n, const float* x, float* out) {
  for_elements(n, [=](auto d, size_t i) HWY_ATTR { hn::StoreU(exponential_of(d, hn::LoadU(d, x + i)), d, out + i); });
}

void silu_product_loop(size_t n, const float* gate, const float* up, float* out) {
  for_elements(n, [=](auto d, size_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, gate + i);
    hn::StoreU(hn::Mul(hn::Div(g, sigmoid_divisor(d, g)), hn::LoadU(d, up + i)), d, out + i);
  });
}

// With s = sigmoid(g): silu(g) = g s and its derivative is s (1 + g (1 - s)).
void silu_product_backward_loop(size_t n, const float* gate, const float* up, const float* gradient, float* d_gate,
                                float* d_up) {
  for_elements(n, [=](auto d, size_t i) HWY_ATTR {
    const auto one = hn::Set(d, 1.0f);
    const auto g = hn::LoadU(d, gate + i), u = hn::LoadU(d, up + i), dy = hn::LoadU(d, gradient + i);
    const auto s = hn::Div(one, sigmoid_divisor(d, g));
    const auto slope = hn::Mul(s, hn::Add(one, hn::Mul(g, hn::Sub(one, s))));
    hn::StoreU(hn::Mul(hn::Mul(dy, u), slope), d, d_gate + i);
    hn::StoreU(hn::Mul(dy, hn::Mul(g, s)), d, d_up + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(exponential_loop);
HWY_EXPORT(silu_product_loop);
HWY_EXPORT(silu_product_backward_loop);

void exponential(int64_t n, const float* x, float* out) {
  HWY_DYNAMIC_DISPATCH(exponential_loop)(static_cast<size_t>(n), x, out);
}

void silu_product(int64_t n, const float* gate, const float* up, float* out) {
  HWY_DYNAMIC_DISPATCH(silu_product_loop)(static_cast<size_t>(n), gate, up, out);
}

void silu_product_backward(int64_t n, const float* gate, const float* up, const float* gradient, float* d_gate,
                           float* d_up) {
  HWY_DYNAMIC_DISPATCH(silu_product_backward_loop)(static_cast<size_t>(n), gate, up, gradient, d_gate, d_up);
}

}  // namespace sherd::kernels
#endif
