#include "sherd/data/sampler.h"

#include <algorithm>
#include <bit>

#include "sherd/base/error.h"
#include "sherd/data/hash.h"

namespace sherd {
namespace {

constexpr int kRounds = 6;

/// A Feistel network on 2 * half_bits bits: a permutation of [0, 4^half_bits).
uint64_t feistel(uint64_t value, int half_bits, uint64_t key) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = value >> half_bits;
  uint64_t right = value & mask;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t next = left ^ (random_bits(key + round, right) & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

}  // namespace

int64_t permuted(int64_t index, int64_t count, uint64_t key) {
  SHERD_CHECK(index >= 0 && index < count);
  // The network works on a power of four below 4 * count; walking its cycle until the value is below `count`
  // permutes [0, count) and takes fewer than four turns on average.
  const int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(count - 1)));
  const int half_bits = std::max(1, (bits + 1) / 2);
  uint64_t value = index;
  do {
    value = feistel(value, half_bits, key);
  } while (value >= static_cast<uint64_t>(count));
  return static_cast<int64_t>(value);
}

void SamplerOptions::validate() const {
  const auto at_least_one = [](const char* key, int64_t value) {
    if (value < 1) config_error("data", "got {} {}, expected at least 1; try 1 or more", key, value);
  };
  at_least_one("data.context", context);
  at_least_one("batch.rows", rows);
  at_least_one("batch.accumulate", accumulate);
}

Sampler::Sampler(int64_t tokens, SamplerOptions options) : options_(options), tokens_(tokens) {
  options_.validate();
  const int64_t context = options_.context;
  if (tokens <= context) {
    config_error("data", "got {} tokens, expected at least context + 1 = {}; try more data or a smaller data.context",
                 tokens, context + 1);
  }
  rows_per_epoch_ =
      options_.order == Order::sequential ? (tokens - 1) / context : std::max<int64_t>(1, tokens / context - 1);
  const int64_t step_rows = options_.rows * options_.accumulate;
  const int64_t more = options_.last == LastBatch::weighted && rows_per_epoch_ % step_rows != 0 ? 1 : 0;
  steps_per_epoch_ = rows_per_epoch_ / step_rows + more;
  if (options_.last == LastBatch::drop && steps_per_epoch_ == 0) {
    config_error("batch.last",
                 "got \"drop\" with {} rows an epoch, expected at least the {} of a step; try \"weighted\"",
                 rows_per_epoch_, step_rows);
  }
}

int64_t Sampler::rows(int64_t step, int64_t accumulation) const {
  SHERD_CHECK(step >= 0 && accumulation >= 0 && accumulation < options_.accumulate);
  if (options_.last != LastBatch::weighted) return options_.rows;
  const int64_t before = (step % steps_per_epoch_ * options_.accumulate + accumulation) * options_.rows;
  return std::clamp<int64_t>(rows_per_epoch_ - before, 0, options_.rows);
}

int64_t Sampler::row_start(int64_t step, int64_t accumulation, int64_t row) const {
  SHERD_CHECK(row >= 0 && row < rows(step, accumulation));
  using Wide = unsigned __int128;  // a step number near 2^63 must not overflow
  const bool whole_steps = options_.last != LastBatch::next_epoch;
  const Wide counted = whole_steps ? Wide(step % steps_per_epoch_) : Wide(step);
  const Wide k = (counted * options_.accumulate + accumulation) * options_.rows + row;
  const int64_t in_epoch = static_cast<int64_t>(k % rows_per_epoch_);
  if (options_.order == Order::sequential) return in_epoch * options_.context;

  const auto epoch = static_cast<uint64_t>(whole_steps ? Wide(step / steps_per_epoch_) : k / rows_per_epoch_);
  const uint64_t key = random_bits(options_.seed, epoch);
  const int64_t slack = tokens_ - 1 - rows_per_epoch_ * options_.context;
  const int64_t offset = random_bits(key, 0) % (std::min(slack, options_.context - 1) + 1);
  return offset + permuted(in_epoch, rows_per_epoch_, key) * options_.context;
}

}  // namespace sherd
