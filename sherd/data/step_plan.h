// What the ranks compute in one step, decided beforehand: pure functions of the sampler and the step.
#pragma once

#include <cstdint>
#include <vector>

#include "sherd/data/batch.h"
#include "sherd/data/sampler.h"
#include "sherd/data/token_source.h"

namespace sherd {

/// One forward and backward on one rank.
struct MicroBatch {
  int64_t accumulation = 0;
  RowSplit rows;
  bool counts = true;  // false: this rank has run out of rows and computes one again, with weight 0
};

/// The micro-batches of `rank` in a step, of at most `micro` rows each (0: of any size). As many on every rank, so that
/// all take part in every collective. Step 0 has as many as any other, or more.
std::vector<MicroBatch> plan_step(const Sampler& sampler, int64_t step, int64_t micro, int rank, int world);

/// Rows of a step over all ranks and accumulation steps.
int64_t count_rows(const Sampler& sampler, int64_t step);

/// Targets of a step over all ranks and accumulation steps: what the loss is divided by. Each rank counts all of them,
/// which needs no exchange and gives the same number everywhere; it reads the step's masks and tokens (about 1 ns a
/// token), or nothing where all tokens are targets. Throws FaultError.
int64_t count_targets(const TokenSource& source, const Sampler& sampler, int64_t step);

}  // namespace sherd
