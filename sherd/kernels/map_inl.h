// Codes of kernels/dynamic_map.h, a vector at a time: included after <hwy/highway.h>, once for each instruction set, in
// sources that disable the targets of vectors of unknown length.
#if defined(SHERD_KERNELS_MAP_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SHERD_KERNELS_MAP_INL_H
#undef SHERD_KERNELS_MAP_INL_H
#else
#define SHERD_KERNELS_MAP_INL_H
#endif

#include <hwy/highway.h>

#include <array>

#include "sherd/kernels/map_tables.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::RebindToSigned<Floats>;
using Bytes = hn::Rebind<uint8_t, Floats>;
using FloatVector = hn::Vec<Floats>;
using IntVector = hn::Vec<Ints>;
constexpr size_t kWidth = hn::MaxLanes(Floats());

constexpr bool kIsAvx3 = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL;
// AVX2 looks at no more than the low three bits by itself, AVX-512 at four, and tables stand twice. Debug builds of
// Highway do not believe it.
constexpr bool kLooksAtLowBits = (HWY_TARGET == HWY_AVX2 || kIsAvx3) && HWY_IS_DEBUG_BUILD == 0;

/// Eight floats, looked up by the low three bits of an index.
class Lookup {
 public:
  /// Of the table, which stays alive, times a factor.
  explicit Lookup(const std::array<float, 16>& table, float factor = 1.0f)
      : table_(table),
        factor_(factor),
        low_(hn::Mul(hn::LoadU(Floats(), table.data()), hn::Set(Floats(), factor))),
        high_(hn::Mul(hn::LoadU(Floats(), table.data() + (kWidth < 8 ? kWidth : 0)), hn::Set(Floats(), factor))) {}

  HWY_INLINE FloatVector operator[](IntVector index) const {
    if constexpr (kLooksAtLowBits) return at(index);
    return at(hn::And(index, hn::Set(Ints(), 7)));
  }

  /// Of an index below eight.
  HWY_INLINE FloatVector at(IntVector index) const {
    const Floats d;
    const Ints di;
    if constexpr (kWidth < 4) {
      HWY_ALIGN int32_t places[kWidth];
      HWY_ALIGN float found[kWidth];
      hn::Store(index, di, places);
      for (size_t k = 0; k < kWidth; ++k) found[k] = table_[places[k] & 7] * factor_;
      return hn::Load(d, found);
    } else if constexpr (kWidth < 8) {
      const auto within = hn::IndicesFromVec(d, hn::And(index, hn::Set(di, 3)));
      const auto in_low = hn::RebindMask(d, hn::Lt(index, hn::Set(di, 4)));
      return hn::IfThenElse(in_low, hn::TableLookupLanes(low_, within), hn::TableLookupLanes(high_, within));
    } else {
      return hn::TableLookupLanes(low_, hn::IndicesFromVec(d, index));
    }
  }

 private:
  const std::array<float, 16>& table_;
  float factor_;
  FloatVector low_, high_;
};

/// Decodes the codes of one block.
template <DynamicMap kMap>
class Decoder {
 public:
  Decoder(const MapTables& tables, float absmax)
      : shift_(tables.decode.shift), slope_(tables.decode.slope, absmax), offset_(tables.decode.offset, absmax) {}

  HWY_INLINE FloatVector operator()(const uint8_t* codes) const {
    const Floats d;
    const Ints di;
    const FloatVector code = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(Bytes(), codes)));
    if constexpr (kMap == DynamicMap::unsigned_values) return magnitude(code);
    const FloatVector index = hn::Sub(code, hn::Set(d, 127.0f));
    return hn::CopySignToAbs(magnitude(hn::Abs(index)), index);
  }

 private:
  HWY_INLINE FloatVector magnitude(FloatVector index) const {
    const Floats d;
    const FloatVector e = hn::Add(index, hn::Set(d, shift_));
    const IntVector exponent = hn::ShiftRight<23>(hn::BitCast(Ints(), e));
    return hn::Add(hn::Mul(slope_[exponent], e), offset_[exponent]);
  }

  float shift_;
  Lookup slope_, offset_;
};

/// Indices of magnitudes, and where they may be one off: closer to a midpoint than the arithmetic can tell.
struct Indices {
  IntVector index, distance;  // distance: in 2^-kIndexFraction of an index, plus 2; unsure below kUnsure

  static constexpr int kUnsure = 5;
  HWY_INLINE bool unsure() const {
    const Ints di;
    return !hn::AllFalse(di, hn::Lt(distance, hn::Set(di, kUnsure)));
  }
};

template <DynamicMap kMap>
class Encoder {
 public:
  explicit Encoder(const MapTables& tables)
      : tables_(tables), edges_(tables.encode.edges), slope_(tables.encode.slope) {}

  /// Of magnitudes in [0, 1].
  HWY_INLINE Indices indices(FloatVector a) const {
    const Floats d;
    const Ints di;
    const FloatVector bits = hn::ConvertTo(d, hn::BitCast(di, a));
    const FloatVector at_least =
        hn::Add(hn::Mul(bits, hn::Set(d, tables_.encode.scale)), hn::Set(d, tables_.encode.shift));
    const IntVector below = hn::ConvertTo(di, hn::Min(hn::Max(at_least, hn::Zero(d)), hn::Set(d, 7.0f)));
    const auto above_edge = hn::RebindMask(di, hn::Ge(a, edges_.at(below)));
    const IntVector of_class = hn::Sub(below, hn::VecFromMask(di, above_edge));
    const IntVector doublings = hn::ShiftLeft<23>(of_class);
    // A float times 2^class, by its exponent.
    const auto doubled = [&](float x) { return hn::BitCast(d, hn::Add(hn::BitCast(di, hn::Set(d, x)), doublings)); };
    const FloatVector top = hn::Sub(doubled(kOne * (1 << kUnsigned)), hn::Set(d, 0.5f * kOne));
    const FloatVector offset = doubled(8.0f / 9 * kOne / 2 * (1 << kUnsigned));
    const IntVector fixed = hn::ConvertTo(di, hn::Min(hn::Add(hn::Mul(a, slope_[of_class]), offset), top));
    const IntVector index = hn::Sub(hn::ShiftRight<kIndexFraction>(fixed), hn::Set(di, kUnsigned));
    return {index, hn::And(hn::Add(fixed, hn::Set(di, 2)), hn::Set(di, (1 << kIndexFraction) - 1))};
  }

  /// By search, for what is unsure.
  IntVector searched(FloatVector a) const {
    HWY_ALIGN float values[kWidth];
    HWY_ALIGN int32_t found[kWidth];
    hn::Store(a, Floats(), values);
    for (size_t k = 0; k < kWidth; ++k) found[k] = tables_.nearest(values[k]);
    return hn::Load(Ints(), found);
  }

 private:
  static constexpr float kOne = 1 << kIndexFraction;
  static constexpr int kUnsigned = kMap == DynamicMap::unsigned_values ? 1 : 0;

  const MapTables& tables_;
  Lookup edges_, slope_;
};

/// Stores the codes of indices; of the signed map with the signs of x.
template <DynamicMap kMap>
HWY_INLINE void store_codes(IntVector index, FloatVector x, uint8_t* codes) {
  const Ints di;
  IntVector code = index;
  if constexpr (kMap == DynamicMap::signed_values) {
    const IntVector sign = hn::BroadcastSignBit(hn::BitCast(di, x));  // -1 of a negative x
    // There is no -1: 127 - 128 saturates to the code of what is nearest.
    code = hn::Add(hn::Sub(hn::Xor(index, sign), sign), hn::Set(di, 127));
  }
  hn::StoreU(hn::DemoteTo(Bytes(), code), Bytes(), codes);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();
#endif
