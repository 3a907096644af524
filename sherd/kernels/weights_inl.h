// Loads and stores of kernels/weights.h, a vector at a time: included after <hwy/highway.h>, once for each instruction
// set, in sources that disable the targets of vectors of unknown length.
#if defined(SHERD_KERNELS_WEIGHTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_WEIGHTS_INL_H
#undef SHERD_KERNELS_WEIGHTS_INL_H
#else
#define SHERD_KERNELS_WEIGHTS_INL_H
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "sherd/kernels/philox_inl.h"
#include "sherd/kernels/weights.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// What is done in one go: random bits are drawn for so many elements, and 8-bit moments have a scale for so many.
constexpr size_t kPiece = 256;

/// Fetches values that a loop comes to soon: the hardware's prefetchers stop at each 4 KiB page, with several streams
/// at once. Beyond the end of memory it does nothing.
template <class T>
HWY_INLINE void prefetch(const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const char*>(values);
  for (size_t line = 0; line < count * sizeof(T); line += 64) hwy::Prefetch(bytes + line);
}

template <class D>
HWY_INLINE hn::Vec<D> load_values(D d, const float* x) {
  return hn::LoadU(d, x);
}

template <class D>
HWY_INLINE hn::Vec<D> load_values(D d, const Bf16* x) {
  const hn::RebindToUnsigned<D> du;
  const auto half = hn::LoadU(hn::Rebind<uint16_t, D>(), reinterpret_cast<const uint16_t*>(x));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, half)));
}

// By a multiplication, which is exact for denormals as well.
template <class D>
HWY_INLINE hn::Vec<D> load_values(D d, const Fp16* x) {
  const hn::RebindToSigned<D> di;
  const auto half = hn::LoadU(hn::Rebind<uint16_t, D>(), reinterpret_cast<const uint16_t*>(x));
  const auto wide = hn::PromoteTo(di, half);
  const auto magnitude = hn::ShiftLeft<13>(hn::And(wide, hn::Set(di, 0x7FFF)));
  const auto infinite = hn::Gt(magnitude, hn::Set(di, (0x7C00 << 13) - 1));
  const auto finite = hn::BitCast(di, hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f)));
  const auto value = hn::IfThenElse(infinite, hn::Or(magnitude, hn::Set(di, 0x7F800000)), finite);
  return hn::BitCast(d, hn::Or(value, hn::ShiftLeft<16>(hn::And(wide, hn::Set(di, 0x8000)))));
}

/// The bits of x, of one NaN for all.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> bits_of(D /*d*/, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  const auto number = hn::RebindMask(du, hn::Eq(x, x));
  return hn::IfThenElse(number, hn::BitCast(du, x), hn::Set(du, 0x7FC00000u));
}

/// Stores the lower 16 bits.
template <class D>
HWY_INLINE void store_halves(D /*d*/, hn::Vec<hn::RebindToUnsigned<D>> halves, uint16_t* to) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, halves)), d16, to);
}

// See [Note: Split].
template <class D>
HWY_INLINE void store_values(D d, hn::Vec<D> x, Bf16* to) {
  const hn::RebindToUnsigned<D> du;
  store_halves(d, hn::ShiftRight<16>(hn::Add(bits_of(d, x), hn::Set(du, 0x8000u))), reinterpret_cast<uint16_t*>(to));
}

// To nearest, ties to even. Small magnitudes by an addition that leaves no room for more bits.
template <class D>
HWY_INLINE void store_values(D d, hn::Vec<D> x, Fp16* to) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = bits_of(d, x);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
  const auto a = hn::BitCast(di, magnitude);
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const auto normal = hn::ShiftRight<13>(hn::Add(magnitude, hn::Add(odd, hn::Set(du, 0xC8000FFFu))));
  const auto denormal =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5f))), hn::BitCast(du, hn::Set(d, 0.5f)));
  const auto small = hn::RebindMask(du, hn::Lt(a, hn::Set(di, 0x38800000)));
  const auto large = hn::RebindMask(du, hn::Gt(a, hn::Set(di, 0x477FFFFF)));
  const auto nan = hn::RebindMask(du, hn::Gt(a, hn::Set(di, 0x7F800000)));
  auto half = hn::IfThenElse(small, denormal, normal);
  half = hn::IfThenElse(large, hn::IfThenElse(nan, hn::Set(du, 0x7E00u), hn::Set(du, 0x7C00u)), half);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000u));
  store_halves(d, hn::Or(half, sign), reinterpret_cast<uint16_t*>(to));
}

/// Weights in a loop over pieces: begin_piece(i) before what comes from i on, then load() and store(), or store_pair()
/// of two vectors, one after the other.
template <class Kind>
class WeightsAt;

/// store_pair() where nothing is gained by it.
template <class Own>
struct StoresSingly {
  template <class D>
  HWY_INLINE void store_pair(D d, hn::Vec<D> x, hn::Vec<D> next, size_t i) const {
    static_cast<const Own*>(this)->store(d, x, i);
    static_cast<const Own*>(this)->store(d, next, i + hn::Lanes(d));
  }
};

template <>
class WeightsAt<Fp32Weights> : public StoresSingly<WeightsAt<Fp32Weights>> {
 public:
  explicit WeightsAt(const Fp32Weights& weights) : values_(weights.values) {}
  HWY_INLINE void begin_piece(size_t) {}
  HWY_INLINE void prefetch_from(size_t i, size_t count) const { prefetch(values_ + i, count); }
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, size_t i) const {
    return hn::LoadU(d, values_ + i);
  }
  template <class D>
  HWY_INLINE void store(D d, hn::Vec<D> x, size_t i) const {
    hn::StoreU(x, d, values_ + i);
  }

 private:
  float* HWY_RESTRICT values_;
};

template <class Half>
class WeightsAt<CopiedWeights<Half>> : public StoresSingly<WeightsAt<CopiedWeights<Half>>> {
 public:
  explicit WeightsAt(const CopiedWeights<Half>& weights) : master_(weights.master), copy_(weights.copy) {}
  HWY_INLINE void begin_piece(size_t) {}
  HWY_INLINE void prefetch_from(size_t i, size_t count) const {
    prefetch(master_ + i, count);
    prefetch(copy_ + i, count);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, size_t i) const {
    return hn::LoadU(d, master_ + i);
  }
  template <class D>
  HWY_INLINE void store(D d, hn::Vec<D> x, size_t i) const {
    hn::StoreU(x, d, master_ + i);
    store_values(d, x, copy_ + i);
  }

 private:
  float* HWY_RESTRICT master_;
  Half* HWY_RESTRICT copy_;
};

template <>
class WeightsAt<SplitWeights> {
 public:
  explicit WeightsAt(const SplitWeights& weights)
      : high_(reinterpret_cast<int16_t*>(weights.high)), low_(weights.low) {}
  HWY_INLINE void begin_piece(size_t) {}
  HWY_INLINE void prefetch_from(size_t i, size_t count) const {
    prefetch(high_ + i, count);
    prefetch(low_ + i, count);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, size_t i) const {
    const hn::RebindToSigned<D> di;
    const hn::Rebind<int16_t, D> d16;
    const auto high = hn::PromoteTo(di, hn::LoadU(d16, high_ + i)), low = hn::PromoteTo(di, hn::LoadU(d16, low_ + i));
    return hn::BitCast(d, hn::Add(hn::ShiftLeft<16>(high), low));
  }
  template <class D>
  HWY_INLINE void store(D d, hn::Vec<D> x, size_t i) const {
    const hn::RebindToUnsigned<D> du;
    const auto low = bits_of(d, x), high = hn::Add(low, hn::Set(du, 0x8000u));
    store_halves(d, hn::ShiftRight<16>(high), reinterpret_cast<uint16_t*>(high_ + i));
    store_halves(d, hn::And(low, hn::Set(du, 0xFFFFu)), reinterpret_cast<uint16_t*>(low_ + i));
  }
  template <class D>
  HWY_INLINE void store_pair(D d, hn::Vec<D> x, hn::Vec<D> next, size_t i) const {
    if constexpr (hn::MaxLanes(d) < 4) {
      store(d, x, i);
      store(d, next, i + hn::Lanes(d));
    } else {
      const hn::RebindToUnsigned<D> du;
      const hn::Repartition<int16_t, D> d16;  // (unqualified names below: vectors of one lane lack them)
      const auto low = bits_of(d, x), next_low = bits_of(d, next), half = hn::Set(du, 0x8000u);
      const auto high = hn::Add(low, half), next_high = hn::Add(next_low, half);
      hn::StoreU(ConcatOdd(d16, hn::BitCast(d16, next_high), hn::BitCast(d16, high)), d16, high_ + i);
      hn::StoreU(ConcatEven(d16, hn::BitCast(d16, next_low), hn::BitCast(d16, low)), d16, low_ + i);
    }
  }

 private:
  int16_t *HWY_RESTRICT high_, *HWY_RESTRICT low_;
};

template <>
class WeightsAt<StochasticWeights> : public StoresSingly<WeightsAt<StochasticWeights>> {
 public:
  explicit WeightsAt(const StochasticWeights& weights) : weights_(weights) {}
  HWY_INLINE void begin_piece(size_t i) {
    piece_ = i;
    const auto first = static_cast<uint64_t>(weights_.first) + i;
    skip_ = first % kPhiloxHalves;
    const hn::ScalableTag<uint32_t> d;
    for (size_t k = 0; k * kPhiloxHalves < kPiece + skip_; k += hn::Lanes(d))
      philox_vector(d, weights_.key, first / kPhiloxHalves + k, weights_.step, random_ + k * kPhiloxHalves);
  }
  HWY_INLINE void prefetch_from(size_t i, size_t count) const { prefetch(weights_.values + i, count); }
  template <class D>
  HWY_INLINE hn::Vec<D> load(D d, size_t i) const {
    return load_values(d, weights_.values + i);
  }
  template <class D>
  HWY_INLINE void store(D d, hn::Vec<D> x, size_t i) const {
    const hn::RebindToUnsigned<D> du;
    const auto bits = bits_of(d, x);
    const auto random = hn::PromoteTo(du, hn::LoadU(hn::Rebind<uint16_t, D>(), random_ + skip_ + i - piece_));
    store_halves(d, hn::ShiftRight<16>(hn::Add(bits, random)), reinterpret_cast<uint16_t*>(weights_.values + i));
  }

 private:
  StochasticWeights weights_;
  size_t piece_ = 0, skip_ = 0;
  uint16_t random_[kPiece + kPhiloxHalves * (1 + hn::MaxLanes(hn::ScalableTag<uint32_t>()))];
};

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
