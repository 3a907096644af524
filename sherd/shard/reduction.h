// The canonical sum on any device: one order of addition, a fixed binary tree over the rank index.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "sherd/shard/store.h"

namespace sherd {

/// out = sources[0] + sources[1] + ... (Round::first) or out += that, all 1-D fp32 of equal size; the tree of
/// kernels::tree_sum. `out` may be one of the sources. On a CPU one pass; elsewhere a pass per addition.
void canonical_sum(std::span<const at::Tensor> sources, const at::Tensor& out, Round round);

/// Zeroes what no parameter covers in a rank-major buffer [ranks * shard_elements].
void zero_padding(const GroupLayout& layout, const at::Tensor& rank_major);

/// Sum of squares in fp64, the same bits on every CPU.
double sum_of_squares(const at::Tensor& values);

}  // namespace sherd
