// kernels/philox.h for several counters at once, one in each lane: included after <hwy/highway.h>, once for each
// instruction set, in sources that disable the targets of vectors of unknown length.
#if defined(SHERD_KERNELS_PHILOX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_PHILOX_INL_H
#undef SHERD_KERNELS_PHILOX_INL_H
#else
#define SHERD_KERNELS_PHILOX_INL_H
#endif

#include <hwy/highway.h>

#include "sherd/kernels/philox.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The upper and the lower halves of products of 32 bits.
template <class D>
struct WideProducts {
  hn::Vec<D> high, low;
};

template <class D>
HWY_INLINE WideProducts<D> multiply_wide(D d, hn::Vec<D> a, hn::Vec<D> b) {
  const hn::RepartitionToWide<D> wide;
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), b);
  return {hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even))),
          hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even))};
}

/// philox_halves() of as many counters as there are lanes, from `index` on: [lanes * kPhiloxHalves].
template <class D>
HWY_INLINE void philox_vector(D d, uint64_t key, uint64_t index, uint32_t stream, uint16_t* to) {
  if constexpr (hn::MaxLanes(d) < 4) {
    for (size_t k = 0; k < hn::MaxLanes(d); ++k) philox_halves(key, index + k, stream, to + k * kPhiloxHalves);
  } else {
    HWY_ALIGN uint32_t low[hn::MaxLanes(d)], high[hn::MaxLanes(d)];
    for (size_t k = 0; k < hn::MaxLanes(d); ++k) {
      low[k] = static_cast<uint32_t>(index + k);
      high[k] = static_cast<uint32_t>((index + k) >> 32);
    }
    hn::Vec<D> c0 = hn::Load(d, low), c1 = hn::Load(d, high), c2 = hn::Set(d, stream), c3 = hn::Zero(d);
    auto key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto first = multiply_wide(d, c0, hn::Set(d, kPhiloxFactors[0]));
      const auto second = multiply_wide(d, c2, hn::Set(d, kPhiloxFactors[1]));
      c0 = hn::Xor(hn::Xor(second.high, c1), hn::Set(d, key0));
      c2 = hn::Xor(hn::Xor(first.high, c3), hn::Set(d, key1));
      c1 = second.low;
      c3 = first.low;
      key0 += kPhiloxSteps[0];
      key1 += kPhiloxSteps[1];
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, d, reinterpret_cast<uint32_t*>(to));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
