// Codes of kernels/dynamic_map.h for values that come from arithmetic that rounds: fewer operations than in map_inl.h,
// and one off beside some midpoints. Included like map_inl.h.
#if defined(SHERD_KERNELS_MAP_ROUNDING_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_MAP_ROUNDING_INL_H
#undef SHERD_KERNELS_MAP_ROUNDING_INL_H
#else
#define SHERD_KERNELS_MAP_ROUNDING_INL_H
#endif

#include "sherd/kernels/map_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Gives codes of values in [-1, 1], in the low 16 bits. There is no -1: that is what is stored as 0, see FourCodes.
template <DynamicMap kMap>
class Rounder {
 public:
  explicit Rounder(const MapTables& tables)
      : tables_(tables),
        edges_(tables.encode.edges),
        slope_(tables.rounding.slope),
        offset_(tables.rounding.offset),
        top_(tables.rounding.top) {}

  HWY_INLINE IntVector operator()(FloatVector x) const {
    const Floats d;
    // Rounded by an addition: from 2^23 on there are no fractions.
    if constexpr (kMap == DynamicMap::unsigned_values)
      return hn::BitCast(Ints(), hn::Add(index(x), hn::Set(d, kNoFractions)));
    const FloatVector signed_index = hn::Xor(index(hn::Abs(x)), hn::And(x, hn::Set(d, -0.0f)));
    return hn::BitCast(Ints(), hn::Add(signed_index, hn::Set(d, kNoFractions + 127)));
  }

 private:
  static constexpr float kNoFractions = 8388608.0f;

  /// Of magnitudes, with a fraction.
  HWY_INLINE FloatVector index(FloatVector a) const {
    const Ints di;
    const IntVector below = at_least_class(di, hn::BitCast(di, a));
    const auto above_edge = hn::RebindMask(di, hn::Ge(a, edges_.at(below)));
    const IntVector of_class = kIsAvx3 ? hn::IfThenElse(above_edge, hn::Add(below, hn::Set(di, 1)), below)
                                       : hn::Sub(below, hn::VecFromMask(di, above_edge));
    return hn::Min(hn::Add(hn::Mul(a, slope_[of_class]), offset_[of_class]), top_[of_class]);
  }

  /// The class or one less, by the upper 16 bits. (A template, so that one lane does not see what it has not.)
  template <class DI>
  HWY_INLINE IntVector at_least_class(DI di, IntVector bits) const {
    const IntVector high = hn::ShiftRight<16>(bits);
    const auto first = hn::Set(di, tables_.rounding.first), rate = hn::Set(di, tables_.rounding.rate);
    if constexpr (hn::MaxLanes(DI()) < 4) {
      return hn::ShiftRight<16>(hn::Mul(hn::Max(hn::Sub(high, first), hn::Zero(di)), rate));
    } else {
      const hn::Repartition<uint16_t, DI> d16;
      const auto above = hn::SaturatedSub(hn::BitCast(d16, high), hn::BitCast(d16, first));
      return hn::BitCast(di, hn::MulHigh(above, hn::BitCast(d16, rate)));
    }
  }

  const MapTables& tables_;
  Lookup edges_, slope_, offset_, top_;
};

/// Rounded codes of four vectors of both moments, kept in the way that is stored with the fewest operations: with
/// AVX-512 as they are, else m in the lower and v in the upper 16 bits. (Unqualified names: vectors of one lane lack
/// them.)
template <class DI>
class FourCodes {
 public:
  /// Of vector k. What would be m = -1 becomes 0, the code of what is nearest.
  HWY_INLINE void set(size_t k, hn::Vec<DI> m, hn::Vec<DI> v) {
    if constexpr (kIsAvx3) {
      m_[k] = m;
      v_[k] = v;
    } else {
      const hn::RebindToFloat<DI> d;
      const auto least = hn::Set(d, 8388608.0f);
      m_[k] = joined(hn::BitCast(DI(), hn::Max(hn::BitCast(d, m), least)), v);
    }
  }

  HWY_INLINE void store(uint8_t* m_codes, uint8_t* v_codes) const {
    if constexpr (kIsAvx3) {
      store_saturated(DI(), m_, m_codes);
      store_saturated(DI(), v_, v_codes);
    } else {
      store_joined(DI(), m_codes, v_codes);
    }
  }

 private:
  static HWY_INLINE hn::Vec<DI> joined(hn::Vec<DI> m, hn::Vec<DI> v) {
    const DI di;
    const auto high = hn::ShiftLeft<16>(v);
    if constexpr (hn::MaxLanes(di) < 4) {
      return hn::Or(hn::And(m, hn::Set(di, 0xFFFF)), high);
    } else {
      const hn::Repartition<uint16_t, DI> d16;
      return hn::BitCast(di, hn::OddEven(hn::BitCast(d16, high), hn::BitCast(d16, m)));
    }
  }

  template <class D>
  static HWY_INLINE void store_saturated(D di, const hn::Vec<D> (&codes)[4], uint8_t* to) {
    const hn::Repartition<int16_t, D> d16;
    const hn::Rebind<uint8_t, decltype(d16)> d8;
    for (size_t k = 0; k < 4; k += 2) {
      const auto halves = ConcatEven(d16, hn::BitCast(d16, codes[k + 1]), hn::BitCast(d16, codes[k]));
      hn::StoreU(hn::DemoteTo(d8, halves), d8, to + k * hn::MaxLanes(di));
    }
  }

  template <class D>
  HWY_INLINE void store_joined(D di, uint8_t* m_codes, uint8_t* v_codes) const {
    if constexpr (hn::MaxLanes(D()) < 4) {
      HWY_ALIGN uint32_t words[4 * hn::MaxLanes(D())];
      for (size_t k = 0; k < 4; ++k) hn::Store(m_[k], di, reinterpret_cast<int32_t*>(words) + k * hn::MaxLanes(di));
      for (size_t k = 0; k < 4 * hn::MaxLanes(di); ++k) {
        m_codes[k] = static_cast<uint8_t>(words[k]);
        v_codes[k] = static_cast<uint8_t>(words[k] >> 16);
      }
    } else {
      const hn::Repartition<uint8_t, D> d8;
      const auto pair = [&](size_t k)
                            HWY_ATTR { return ConcatEven(d8, hn::BitCast(d8, m_[k + 1]), hn::BitCast(d8, m_[k])); };
      const auto low = pair(0), high = pair(2);  // m v m v ...
      hn::StoreU(ConcatEven(d8, high, low), d8, m_codes);
      hn::StoreU(ConcatOdd(d8, high, low), d8, v_codes);
    }
  }

  hn::Vec<DI> m_[4], v_[4];
};

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#endif  // once for each instruction set
