#include "sherd/kernels/dynamic_map.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/dynamic_map.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/map_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {

/// Codes of a whole block. Divides, as bitsandbytes does: a factor 1 / absmax would round differently.
template <DynamicMap kMap>
void encode_block(const float* x, uint8_t* codes, float absmax) {
  const Floats d;
  const Encoder<kMap> encoder(map_tables(kMap));
  for (size_t i = 0; i < kMapBlock; i += kWidth) {
    const FloatVector value = hn::Div(hn::LoadU(d, x + i), hn::Set(d, absmax));
    const FloatVector a = kMap == DynamicMap::signed_values ? hn::Abs(value) : hn::Max(value, hn::Zero(d));
    const Indices found = encoder.indices(a);
    store_codes<kMap>(HWY_UNLIKELY(found.unsure()) ? encoder.searched(a) : found.index, value, codes + i);
  }
}

template <DynamicMap kMap>
void decode_block(const uint8_t* codes, float absmax, float* x) {
  const Decoder<kMap> decoder(map_tables(kMap), absmax);
  for (size_t i = 0; i < kMapBlock; i += kWidth) hn::StoreU(decoder(codes + i), Floats(), x + i);
}

void encode_signed(const float* x, uint8_t* codes, float absmax) {
  encode_block<DynamicMap::signed_values>(x, codes, absmax);
}
void encode_unsigned(const float* x, uint8_t* codes, float absmax) {
  encode_block<DynamicMap::unsigned_values>(x, codes, absmax);
}
void decode_signed(const uint8_t* codes, float absmax, float* x) {
  decode_block<DynamicMap::signed_values>(codes, absmax, x);
}
void decode_unsigned(const uint8_t* codes, float absmax, float* x) {
  decode_block<DynamicMap::unsigned_values>(codes, absmax, x);
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(encode_signed);
HWY_EXPORT(encode_unsigned);
HWY_EXPORT(decode_signed);
HWY_EXPORT(decode_unsigned);

namespace {

/// The largest magnitude; 0 where none is a normal number.
float largest(const float* x, int64_t n) {
  float most = 0.0f;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
  return most < std::numeric_limits<float>::min() ? 0.0f : most;
}

int zero_code(DynamicMap map) { return map == DynamicMap::signed_values ? 127 : 0; }

}  // namespace

std::span<const float, 256> codebook(DynamicMap map) { return map_tables(map).codebook; }

void encode(DynamicMap map, int64_t n, const float* x, uint8_t* codes, float* absmax) {
  const auto block =
      map == DynamicMap::signed_values ? HWY_DYNAMIC_DISPATCH(encode_signed) : HWY_DYNAMIC_DISPATCH(encode_unsigned);
  for (int64_t begin = 0; begin < n; begin += kMapBlock) {
    const int64_t count = std::min(kMapBlock, n - begin);
    float& most = absmax[begin / kMapBlock] = largest(x + begin, count);
    if (most == 0.0f) {
      std::memset(codes + begin, zero_code(map), static_cast<size_t>(count));
    } else if (count == kMapBlock) {
      block(x + begin, codes + begin, most);
    } else {
      float values[kMapBlock] = {};
      uint8_t found[kMapBlock];
      std::copy_n(x + begin, count, values);
      block(values, found, most);
      std::copy_n(found, count, codes + begin);
    }
  }
}

void decode(DynamicMap map, int64_t n, const uint8_t* codes, const float* absmax, float* x) {
  const auto block =
      map == DynamicMap::signed_values ? HWY_DYNAMIC_DISPATCH(decode_signed) : HWY_DYNAMIC_DISPATCH(decode_unsigned);
  for (int64_t begin = 0; begin < n; begin += kMapBlock) {
    const int64_t count = std::min(kMapBlock, n - begin);
    const float most = absmax[begin / kMapBlock];
    if (count == kMapBlock) {
      block(codes + begin, most, x + begin);
    } else {
      uint8_t padded[kMapBlock] = {};
      float values[kMapBlock];
      std::copy_n(codes + begin, count, padded);
      block(padded, most, values);
      std::copy_n(values, count, x + begin);
    }
  }
}

}  // namespace sherd::kernels
#endif
