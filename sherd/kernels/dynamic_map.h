// 8-bit optimizer state: the blockwise dynamic map of Dettmers et al., "8-bit Optimizers via Block-wise Quantization"
// (arXiv:2110.02861), with the codes of bitsandbytes 0.50.
//
// A block of 256 values is its largest magnitude, absmax (fp32), and for each value the code (uint8) of the entry of a
// map of 256 that is nearest to value / absmax; of two as near, the larger magnitude. A map has seven decades, from
// (1e-7, 1e-6] to (0.1, 1], with twice as many entries from each to the next: the means of equal intervals; and 0 and
// 1. The signed map (first moments) has 1 to 64 entries a decade and sign, and no -1; the unsigned one (second moments)
// 2 to 128. So entries are lines in their codes, decade by decade, and no table has to be searched.
//
// Codes are those of bitsandbytes' default backend, but for ties. (Its kernel for CPUs takes a coarser way near zero;
// what it wrote is read the same.)
//
// Any n; the last block may be shorter. A block without a normal fp32 value is zero. Infinite and NaN values give codes
// of no meaning, in their block alone. The same codes and values on every instruction set. Single-threaded, nothing is
// allocated.
#pragma once

#include <cstdint>
#include <span>

namespace sherd::kernels {

enum class DynamicMap { signed_values, unsigned_values };

constexpr int64_t kMapBlock = 256;
/// How many absmax values n codes have.
constexpr int64_t map_blocks(int64_t n) { return (n + kMapBlock - 1) / kMapBlock; }

/// The map: entry c is what code c stands for, ascending in [-1, 1] or [0, 1].
std::span<const float, 256> codebook(DynamicMap map);

/// codes[n] and absmax[map_blocks(n)] of x[n].
void encode(DynamicMap map, int64_t n, const float* x, uint8_t* codes, float* absmax);
/// The reverse: x[n], within 2e-6 of codebook[code] * absmax (relative).
void decode(DynamicMap map, int64_t n, const uint8_t* codes, const float* absmax, float* x);

}  // namespace sherd::kernels
