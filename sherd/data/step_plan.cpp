#include "sherd/data/step_plan.h"

#include <algorithm>
#include <numeric>

namespace sherd {

std::vector<MicroBatch> plan_step(const Sampler& sampler, int64_t step, int64_t micro, int rank, int world) {
  std::vector<MicroBatch> plan;
  for (int64_t a = 0; a < sampler.options().accumulate; ++a) {
    const int64_t rows = sampler.rows(step, a);
    const RowSplit mine = split_rows(rows, rank, world);
    const int64_t most = split_rows(rows, 0, world).count;
    const int64_t size = micro > 0 ? std::min(micro, most) : most;
    for (int64_t first = 0; first < most; first += size) {
      const int64_t count = std::min(size, mine.count - first);
      if (count > 0) {
        plan.push_back({a, {mine.first + first, count}, true});
      } else {
        plan.push_back({a, {0, 1}, false});
      }
    }
  }
  return plan;
}

int64_t count_rows(const Sampler& sampler, int64_t step) {
  int64_t rows = 0;
  for (int64_t a = 0; a < sampler.options().accumulate; ++a) rows += sampler.rows(step, a);
  return rows;
}

int64_t count_targets(const TokenSource& source, const Sampler& sampler, int64_t step) {
  const int64_t context = sampler.options().context;
  if (source.all_are_targets()) return count_rows(sampler, step) * context;
  std::vector<uint8_t> is_target(static_cast<size_t>(context));
  int64_t targets = 0;
  for (int64_t a = 0; a < sampler.options().accumulate; ++a) {
    for (int64_t row = 0; row < sampler.rows(step, a); ++row) {
      source.read_targets(sampler.row_start(step, a, row) + 1, context, is_target.data());
      targets = std::accumulate(is_target.begin(), is_target.end(), targets);
    }
  }
  return targets;
}

}  // namespace sherd
