#include "sherd/kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

// The lanes live in an array of vectors, which vectors of unknown length cannot be put in.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/cross_entropy.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"
#include "sherd/kernels/exponential_inl.h"
#include "sherd/kernels/lanes_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kBlock = 1024;

float largest(size_t n, const float* x) {
  const hn::ScalableTag<float> d;
  constexpr size_t kWidth = hn::MaxLanes(d);
  auto most = hn::Set(d, -HUGE_VALF), more = most;
  size_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    most = hn::Max(most, hn::LoadU(d, x + i));
    more = hn::Max(more, hn::LoadU(d, x + i + kWidth));
  }
  float result = hn::GetLane(hn::MaxOfLanes(d, hn::Max(most, more)));
  for (; i < n; ++i) result = std::max(result, x[i]);
  return result;
}

// What becomes of the exponentials besides their sum.
struct Drop {
  template <class D>
  HWY_INLINE void operator()(D, hn::Vec<D>, size_t) const {}
};
struct Store {
  template <class D>
  HWY_INLINE void operator()(D d, hn::Vec<D> e, size_t i) const {
    hn::StoreU(e, d, to + i);
  }
  float* to;
};

// The sum of exp(x - most) over at most a block.
template <class Keep>
HWY_INLINE float sum_of_block(size_t n, const float* x, float most, const Keep& keep) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  constexpr size_t kWidth = hn::MaxLanes(d), kVectors = kLanes / kWidth;
  const auto shift = hn::Set(d, most);
  hn::Vec<decltype(d)> sums[kVectors];
  for (auto& sum : sums) sum = hn::Zero(d);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 16
    for (size_t k = 0; k < kVectors; ++k) {
      const size_t at = i + k * kWidth;
      const auto e = exponential_of(d, hn::Sub(hn::LoadU(d, x + at), shift));
      keep(d, e, at);
      sums[k] = hn::Add(sums[k], e);
    }
  }
  HWY_ALIGN float lane[kLanes];
  for (size_t k = 0; k < kVectors; ++k) hn::Store(sums[k], d, lane + k * kWidth);
  for (size_t k = 0; i < n; ++i, ++k) {
    const auto e = exponential_of(one, hn::Sub(hn::LoadU(one, x + i), hn::Set(one, most)));
    keep(one, e, i);
    lane[k] += hn::GetLane(e);
  }
  return fold_lanes(lane);
}

// The row's loss; the sum of its exponentials into `sum`.
template <class MakeKeep>
HWY_INLINE double loss_of_row(size_t n, const float* x, int64_t target, const MakeKeep& keep_at, double& sum) {
  const float most = largest(n, x), of_target = x[target];
  sum = 0;
  for (size_t i = 0; i < n; i += kBlock) sum += sum_of_block(std::min(kBlock, n - i), x + i, most, keep_at(i));
  return std::log(sum) + (static_cast<double>(most) - of_target);
}

void loss_loop(const LogitRows& shape, const float* logits, double* losses) {
  const size_t n = static_cast<size_t>(shape.vocab);
  for (int64_t row = 0; row < shape.rows; ++row, logits += shape.stride) {
    double sum = 0;
    const int64_t target = shape.targets[row];
    losses[row] = target == shape.ignored ? 0
                                          : loss_of_row(
                                                n, logits, target, [](size_t) { return Drop{}; }, sum);
  }
}

void gradient_loop(const LogitRows& shape, double scale, float* logits, double* losses) {
  const size_t n = static_cast<size_t>(shape.vocab);
  for (int64_t row = 0; row < shape.rows; ++row, logits += shape.stride) {
    const int64_t target = shape.targets[row];
    if (target == shape.ignored) {
      losses[row] = 0;
      std::fill(logits, logits + n, 0.0f);
      continue;
    }
    double sum = 0;
    losses[row] = loss_of_row(
        n, logits, target, [logits](size_t i) { return Store{logits + i}; }, sum);
    const float factor = static_cast<float>(scale / sum);
    for_elements(n, [=](auto d, size_t i)
                        HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(d, logits + i), hn::Set(d, factor)), d, logits + i); });
    logits[target] -= static_cast<float>(scale);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(loss_loop);
HWY_EXPORT(gradient_loop);

void cross_entropy(const LogitRows& shape, const float* logits, double* losses) {
  HWY_DYNAMIC_DISPATCH(loss_loop)(shape, logits, losses);
}

void cross_entropy_gradient(const LogitRows& shape, double scale, float* logits, double* losses) {
  HWY_DYNAMIC_DISPATCH(gradient_loop)(shape, scale, logits, losses);
}

}  // namespace sherd::kernels
#endif
