#include "sherd/kernels/weights.h"

#include <algorithm>
#include <cstddef>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/weights.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/weights_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

template <class Kind>
void store_kind(const Kind& kind, size_t n, const float* values) {
  WeightsAt<Kind> weights(kind);
  for (size_t piece = 0; piece < n; piece += kPiece) {
    weights.begin_piece(piece);
    for_elements(std::min(kPiece, n - piece),
                 [&](auto d, size_t i) HWY_ATTR { weights.store(d, hn::LoadU(d, values + piece + i), piece + i); });
  }
}

template <class Kind>
void load_kind(const Kind& kind, size_t n, float* values) {
  const WeightsAt<Kind> weights(kind);
  for_elements(n, [&](auto d, size_t i) HWY_ATTR { hn::StoreU(weights.load(d, i), d, values + i); });
}

template <class T>
void widen_values(const T* from, size_t n, float* values) {
  for_elements(n, [&](auto d, size_t i) HWY_ATTR { hn::StoreU(load_values(d, from + i), d, values + i); });
}

void store_any(const Weights& weights, size_t n, const float* values) {
  std::visit([&](const auto& kind) { store_kind(kind, n, values); }, weights);
}
void load_any(const Weights& weights, size_t n, float* values) {
  std::visit([&](const auto& kind) { load_kind(kind, n, values); }, weights);
}
void widen_any(const Gradient& gradient, size_t n, float* values) {
  std::visit([&](const auto* from) { widen_values(from, n, values); }, gradient);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(store_any);
HWY_EXPORT(load_any);
HWY_EXPORT(widen_any);

void store_weights(const Weights& weights, int64_t n, const float* values) {
  HWY_DYNAMIC_DISPATCH(store_any)(weights, static_cast<size_t>(n), values);
}
void load_weights(const Weights& weights, int64_t n, float* values) {
  HWY_DYNAMIC_DISPATCH(load_any)(weights, static_cast<size_t>(n), values);
}
void widen(const Gradient& gradient, int64_t n, float* values) {
  HWY_DYNAMIC_DISPATCH(widen_any)(gradient, static_cast<size_t>(n), values);
}

}  // namespace sherd::kernels
#endif
