#include "sherd/kernels/reduce.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "sherd/base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/reduce.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kDirect = 8;    // sources summed in registers
constexpr size_t kBlock = 1024;  // elements of a partial sum beyond that: 4 KiB of stack a level of the tree

// Past the caches: for a destination that would not stay there, and so need not be read before it is written.
enum class Stores { cached, streaming };

// The tree over sources [kFirst, kFirst + kCount) at element i.
template <size_t kFirst, size_t kCount, class D>
HWY_INLINE hn::Vec<D> tree_at(D d, const float* const* sources, size_t i) {
  if constexpr (kCount == 1) {
    return hn::LoadU(d, sources[kFirst] + i);
  } else {
    constexpr size_t kLeft = std::bit_floor(kCount - 1);
    return hn::Add(tree_at<kFirst, kLeft>(d, sources, i), tree_at<kFirst + kLeft, kCount - kLeft>(d, sources, i));
  }
}

template <size_t kCount, Accumulate kMode, Stores kStores, class D>
HWY_INLINE void sum_at(D d, const float* const* sources, size_t i, float divisor, float* out) {
  auto sum = tree_at<0, kCount>(d, sources, i);
  if (divisor != 1) sum = hn::Div(sum, hn::Set(d, divisor));
  if constexpr (kMode == Accumulate::add) sum = hn::Add(hn::LoadU(d, out), sum);
  if constexpr (kStores == Stores::streaming) {
    hn::Stream(sum, d, out);
  } else {
    hn::StoreU(sum, d, out);
  }
}

// How many elements come before the first aligned vector.
HWY_INLINE size_t unaligned_elements(const float* at, size_t lanes, size_t n) {
  const size_t behind = reinterpret_cast<uintptr_t>(at) / sizeof(float) % lanes;
  return std::min(n, behind == 0 ? 0 : lanes - behind);
}

// out[k] (+)= the tree at element begin + k, for k in [0, n).
template <size_t kCount, Accumulate kMode, Stores kStores>
void sum_direct(const float* const* sources, size_t begin, size_t n, float divisor, float* out) {
  const float* s[kCount];
  for (size_t k = 0; k < kCount; ++k) s[k] = sources[k] + begin;
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  if constexpr (kStores == Stores::streaming)
    for (const size_t first = unaligned_elements(out, lanes, n); i < first; ++i)
      sum_at<kCount, kMode, Stores::cached>(one, s, i, divisor, out + i);
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    sum_at<kCount, kMode, kStores>(d, s, i, divisor, out + i);
    sum_at<kCount, kMode, kStores>(d, s, i + lanes, divisor, out + i + lanes);
    sum_at<kCount, kMode, kStores>(d, s, i + 2 * lanes, divisor, out + i + 2 * lanes);
    sum_at<kCount, kMode, kStores>(d, s, i + 3 * lanes, divisor, out + i + 3 * lanes);
  }
  for (; i < n; ++i) sum_at<kCount, kMode, Stores::cached>(one, s, i, divisor, out + i);
}

template <Accumulate kMode, Stores kStores>
void sum_few(const float* const* sources, size_t count, size_t begin, size_t n, float divisor, float* out) {
  switch (count) {
    case 1:
      return sum_direct<1, kMode, kStores>(sources, begin, n, divisor, out);
    case 2:
      return sum_direct<2, kMode, kStores>(sources, begin, n, divisor, out);
    case 3:
      return sum_direct<3, kMode, kStores>(sources, begin, n, divisor, out);
    case 4:
      return sum_direct<4, kMode, kStores>(sources, begin, n, divisor, out);
    case 5:
      return sum_direct<5, kMode, kStores>(sources, begin, n, divisor, out);
    case 6:
      return sum_direct<6, kMode, kStores>(sources, begin, n, divisor, out);
    case 7:
      return sum_direct<7, kMode, kStores>(sources, begin, n, divisor, out);
    default:
      return sum_direct<8, kMode, kStores>(sources, begin, n, divisor, out);
  }
}

// The tree of one block into `out`, which is scratch: sources stay readable even where the caller's output is one.
void sum_block(const float* const* sources, size_t count, size_t begin, size_t n, float* out) {
  if (count <= kDirect) return sum_few<Accumulate::overwrite, Stores::cached>(sources, count, begin, n, 1, out);
  const size_t left = std::bit_floor(count - 1);
  HWY_ALIGN float right[kBlock];
  sum_block(sources, left, begin, n, out);
  sum_block(sources + left, count - left, begin, n, right);
  const float* const both[] = {out, right};
  sum_direct<2, Accumulate::overwrite, Stores::cached>(both, 0, n, 1, out);
}

template <Accumulate kMode, Stores kStores>
void sum_any(const float* const* sources, size_t count, size_t n, float divisor, float* out) {
  if (count <= kDirect) return sum_few<kMode, kStores>(sources, count, 0, n, divisor, out);
  HWY_ALIGN float block[kBlock];
  const float* const whole[] = {block};
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t size = std::min(kBlock, n - begin);
    sum_block(sources, count, begin, size, block);
    sum_direct<1, kMode, kStores>(whole, 0, size, divisor, out + begin);
  }
}

void tree_sum_loop(const float* const* sources, size_t count, size_t n, float* out, Accumulate mode, float divisor) {
  if (mode == Accumulate::add) {
    sum_any<Accumulate::add, Stores::cached>(sources, count, n, divisor, out);
  } else {
    sum_any<Accumulate::overwrite, Stores::cached>(sources, count, n, divisor, out);
  }
}

void tree_sum_streaming(const float* const* sources, size_t count, size_t n, float divisor, float* out) {
  sum_any<Accumulate::overwrite, Stores::streaming>(sources, count, n, divisor, out);
  hwy::FlushStream();  // before whoever publishes the sums
}

void copy_streaming(const float* HWY_RESTRICT from, size_t n, float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = unaligned_elements(to, lanes, n);
  std::memcpy(to, from, i * sizeof(float));
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto first = hn::LoadU(d, from + i);
    const auto second = hn::LoadU(d, from + i + lanes);
    hn::Stream(first, d, to + i);
    hn::Stream(second, d, to + i + lanes);
  }
  hwy::FlushStream();  // before whoever publishes the copy
  std::memcpy(to + i, from + i, (n - i) * sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(tree_sum_loop);
HWY_EXPORT(tree_sum_streaming);
HWY_EXPORT(copy_streaming);

// From here on a copy streams: measured on 32 MiB of last-level cache, 0.7 of memcpy's time, below it is slower.
constexpr int64_t kStreamFrom = int64_t{4} << 20;

void tree_sum(std::span<const float* const> sources, int64_t n, float* out, Accumulate mode, float divisor) {
  SHERD_CHECK(!sources.empty());
  // A source has been read when its element is written: its line is in the cache.
  const bool fresh = mode == Accumulate::overwrite && std::find(sources.begin(), sources.end(), out) == sources.end();
  if (fresh && n >= kStreamFrom)
    return HWY_DYNAMIC_DISPATCH(tree_sum_streaming)(sources.data(), sources.size(), static_cast<size_t>(n), divisor,
                                                    out);
  HWY_DYNAMIC_DISPATCH(tree_sum_loop)(sources.data(), sources.size(), static_cast<size_t>(n), out, mode, divisor);
}

void copy(const float* from, int64_t n, float* to) {
  if (n >= kStreamFrom) {
    HWY_DYNAMIC_DISPATCH(copy_streaming)(from, static_cast<size_t>(n), to);
  } else if (n > 0) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  }
}

void add(const float* from, int64_t n, float* into) { tree_sum({&from, 1}, n, into, Accumulate::add); }

}  // namespace sherd::kernels
#endif
