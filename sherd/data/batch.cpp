#include "sherd/data/batch.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "sherd/base/error.h"

namespace sherd {

RowSplit split_rows(int64_t rows, int rank, int world) {
  SHERD_CHECK(rows >= 0 && rank >= 0 && rank < world);
  const int64_t each = rows / world;
  const int64_t more = rows % world;  // the first `more` ranks take one more
  return {rank * each + std::min<int64_t>(rank, more), each + (rank < more ? 1 : 0)};
}

Batch read_batch(const TokenSource& source, const Sampler& sampler, int64_t step, int64_t accumulation,
                 RowSplit split) {
  SHERD_CHECK(sampler.tokens() <= source.size());
  const int64_t context = sampler.options().context;
  const at::TensorOptions options = at::TensorOptions().dtype(at::kLong).device(at::kCPU);
  Batch batch{at::empty({split.count, context}, options), at::empty({split.count, context}, options)};
  std::vector<int64_t> row(context + 1);
  std::vector<uint8_t> is_target(source.all_are_targets() ? 0 : context);
  for (int64_t r = 0; r < split.count; ++r) {
    const int64_t start = sampler.row_start(step, accumulation, split.first + r);
    source.read(start, context + 1, row.data());
    std::copy_n(row.begin(), context, batch.tokens.mutable_data_ptr<int64_t>() + r * context);
    if (!is_target.empty()) source.read_targets(start + 1, context, is_target.data());
    for (size_t i = 0; i < is_target.size(); ++i)
      if (is_target[i] == 0) row[i + 1] = kNoTarget;
    std::copy_n(row.begin() + 1, context, batch.targets.mutable_data_ptr<int64_t>() + r * context);
  }
  return batch;
}

}  // namespace sherd
