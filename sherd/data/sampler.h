// Which tokens each row of each step reads: a pure function of (step, accumulation step, row).
//
// It knows neither ranks nor history. So a run can be resumed at any step, and the rows of a step do not depend on
// how many ranks share them. Rows are counted through the whole training:
// k = (step * accumulate + accumulation) * rows + row.
#pragma once

#include <cstdint>

namespace sherd {

/// sequential: row k starts at token (k mod R) * context, where R = (tokens - 1) / context rows fit into the stream;
///             after the last whole row the stream begins anew.
/// shuffled:   epoch e = k / R of R = max(1, tokens / context - 1) rows takes each of them once, in an order and from
///             a first token (below context) that depend on seed and e, so that row boundaries move between epochs.
enum class Order { sequential, shuffled };

struct SamplerOptions {
  int64_t context = 0;     // tokens of a row; a row reads one more, since the targets are the tokens shifted by one
  int64_t rows = 1;        // of one accumulation step, over all ranks
  int64_t accumulate = 1;  // accumulation steps of a step
  Order order = Order::sequential;
  uint64_t seed = 0;  // shuffled only

  /// Throws ConfigError unless context, rows and accumulate are at least 1.
  void validate() const;
};

/// A value: a few integers, O(1) memory for any number of rows. No call allocates.
class Sampler {
 public:
  /// For a stream of `tokens`. Throws ConfigError if it holds fewer than context + 1.
  Sampler(int64_t tokens, SamplerOptions options);

  /// The first token of a row: it and the `context` tokens after it lie in the stream.
  int64_t row_start(int64_t step, int64_t accumulation, int64_t row) const;

  const SamplerOptions& options() const { return options_; }
  int64_t tokens() const { return tokens_; }
  int64_t rows_per_epoch() const { return rows_per_epoch_; }

 private:
  SamplerOptions options_;
  int64_t tokens_;
  int64_t rows_per_epoch_;  // R of the order
};

/// The element at `index` of a permutation of [0, count) chosen by `key`. O(1) memory, a few hashes.
int64_t permuted(int64_t index, int64_t count, uint64_t key);

}  // namespace sherd
