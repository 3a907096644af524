// The canonical sum on any device: one order of addition, a fixed binary tree over the rank index.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "sherd/base/exact_sum.h"
#include "sherd/shard/store.h"

namespace sherd {

/// out = (sources[0] + sources[1] + ...) / divisor (Round::first) or out += that, all 1-D of equal size; the tree of
/// kernels::tree_sum, in fp32: sources of one type, fp32, bf16 or fp16, and `out` of theirs (rounded at the end) or
/// fp32. All of fp64, or all complex: in that type. `out` may be one of the sources. Of these three types on a CPU one
/// pass; else a pass per addition.
void canonical_sum(std::span<const at::Tensor> sources, const at::Tensor& out, Round round, double divisor = 1);

/// Zeroes what no parameter covers in a rank-major buffer [ranks * shard_elements].
void zero_padding(const GroupLayout& layout, const at::Tensor& rank_major);

/// Adds the squares of rows of `width` fp32, bf16, fp16 or fp64 values each, in the way of add_squares(); of complex
/// ones the squares of their absolute values.
void add_row_squares(const at::Tensor& rows, int64_t width, ExactSum& sum);

/// Adds the squares of `rank`'s shard in its piece of the rank-major buffer, [shard_elements]. A row is summed in
/// fp64, in an order that depends on its length alone, and rows are added exactly: the total over all ranks has the
/// same bits however many they are. A row costs about 10 ns beside its elements.
void add_squares(const GroupLayout& layout, int rank, const at::Tensor& piece, ExactSum& sum);

}  // namespace sherd
