// Which tokens each row of each step reads: a pure function of (step, accumulation step, row).
//
// It knows neither ranks nor history. So a run can be resumed at any step, and the rows of a step do not depend on
// how many ranks share them. Rows are counted through the whole training:
// k = (step * accumulate + accumulation) * rows + row. (Epochs that begin with a step, see LastBatch, count from
// there.)
#pragma once

#include <cstdint>

#include "sherd/base/names.h"

namespace sherd {

/// sequential: row k starts at token (k mod R) * context, where R = (tokens - 1) / context rows fit into the stream;
///             after the last whole row the stream begins anew.
/// shuffled:   epoch e = k / R of R = max(1, tokens / context - 1) rows takes each of them once, in an order and from
///             a first token (below context) that depend on seed and e, so that row boundaries move between epochs.
enum class Order { sequential, shuffled };
inline constexpr Name<Order> kOrderNames[] = {{Order::sequential, "sequential"}, {Order::shuffled, "shuffled"}};

/// The end of an epoch, when its rows are not a whole number of steps:
/// next_epoch: a step takes the rows it lacks from the next epoch, so that all steps are alike (the default);
/// drop:       the rows that do not fill a step are left out of this epoch;
/// weighted:   the epoch's last step is a smaller one. Its loss is the mean over its own targets.
enum class LastBatch { next_epoch, drop, weighted };
inline constexpr Name<LastBatch> kLastBatchNames[] = {
    {LastBatch::next_epoch, "next_epoch"}, {LastBatch::drop, "drop"}, {LastBatch::weighted, "weighted"}};

struct SamplerOptions {
  int64_t context = 0;     // tokens of a row; a row reads one more, since the targets are the tokens shifted by one
  int64_t rows = 1;        // of one accumulation step, over all ranks
  int64_t accumulate = 1;  // accumulation steps of a step
  Order order = Order::sequential;
  uint64_t seed = 0;  // shuffled only
  LastBatch last = LastBatch::next_epoch;

  /// Throws ConfigError unless context, rows and accumulate are at least 1.
  void validate() const;
};

/// A value: a few integers, O(1) memory for any number of rows. No call allocates.
class Sampler {
 public:
  /// For a stream of `tokens`. Throws ConfigError if it holds fewer than context + 1, or if all of an epoch were
  /// dropped.
  Sampler(int64_t tokens, SamplerOptions options);

  /// Rows of an accumulation step: options().rows, or fewer (also none) in an epoch's last step.
  int64_t rows(int64_t step, int64_t accumulation) const;

  /// The first token of a row below rows(): it and the `context` tokens after it lie in the stream.
  int64_t row_start(int64_t step, int64_t accumulation, int64_t row) const;

  const SamplerOptions& options() const { return options_; }
  int64_t tokens() const { return tokens_; }
  int64_t rows_per_epoch() const { return rows_per_epoch_; }

 private:
  SamplerOptions options_;
  int64_t tokens_;
  int64_t rows_per_epoch_;   // R of the order
  int64_t steps_per_epoch_;  // drop and weighted
};

/// The element at `index` of a permutation of [0, count) chosen by `key`. O(1) memory, a few hashes.
int64_t permuted(int64_t index, int64_t count, uint64_t key);

}  // namespace sherd
