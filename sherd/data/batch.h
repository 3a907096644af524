// One rank's rows of a batch, as tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "sherd/data/sampler.h"
#include "sherd/data/token_source.h"

namespace sherd {

/// Rows [first, first + count) of an accumulation step.
struct RowSplit {
  int64_t first = 0;
  int64_t count = 0;
};

/// The rows of `rank` among `world` ranks: contiguous and near-equal, the first ranks taking one more
/// (4 rows on 3 ranks: 2 + 1 + 1). With fewer rows than ranks the last ranks have none.
RowSplit split_rows(int64_t rows, int rank, int world);

/// What stands in the place of a token that is not a target.
inline constexpr int64_t kNoTarget = -100;

/// int64 CPU tensors [rows, context], contiguous; targets[r][i] is the token after tokens[r][i], or kNoTarget.
struct Batch {
  at::Tensor tokens;
  at::Tensor targets;
};

/// Reads the rows `split` of one accumulation step. Allocates the tensors it returns. Throws FaultError.
Batch read_batch(const TokenSource& source, const Sampler& sampler, int64_t step, int64_t accumulation, RowSplit split);

}  // namespace sherd
