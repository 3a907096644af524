// The canonical sum: fp32 spans of all ranks added in one order, whatever the transport, the timing or the machine.
//
// The order is a binary tree over the source index, split at the largest power of two below the number of sources:
//   2: s0+s1    3: (s0+s1)+s2    4: (s0+s1)+(s2+s3)    5: ((s0+s1)+(s2+s3))+s4    ...
// which is the same as adding neighbours level by level and carrying an odd last one up. So sums of aligned
// power-of-two runs of ranks (the hosts) are subtrees, and adding them by the same rule gives the same bits.
//
// Single-threaded, no allocation; any n >= 0 and any alignment of a float; the same bits on every instruction set and
// wherever the range is split. Cost: one pass for up to 8 sources, beyond that partial sums in a block of L1.
#pragma once

#include <cstdint>
#include <span>

namespace sherd::kernels {

enum class Accumulate {
  overwrite,  // out = tree / divisor
  add,        // out = out + tree / divisor
};

/// Sums at least one source into `out`. `out` may be one of the sources, but not overlap one otherwise.
void tree_sum(std::span<const float* const> sources, int64_t n, float* out, Accumulate mode, float divisor = 1);

/// Copies between spans that do not overlap; 16 MiB and more go past the caches.
void copy(const float* from, int64_t n, float* to);

/// into = into + from, for spans that are equal or do not overlap.
void add(const float* from, int64_t n, float* into);

}  // namespace sherd::kernels
