#include "sherd/data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

TEST(Permuted, IsAPermutationOfAnyCount) {
  for (int64_t count : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 1023, 1025, 4099}) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t p = permuted(i, count, 42);
      ASSERT_TRUE(p >= 0 && p < count);
      seen.insert(p);
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), count);
  }
  const int64_t huge = std::numeric_limits<int64_t>::max();
  EXPECT_NE(permuted(0, huge, 1), permuted(huge - 1, huge, 1));
}

TEST(Permuted, MovesElementsFarAndDependsOnTheKey) {
  constexpr int64_t count = 10000;
  int64_t fixed = 0, same = 0, neighbours = 0, below_half = 0;
  for (int64_t i = 0; i + 1 < count; ++i) {
    const int64_t p = permuted(i, count, 1);
    fixed += p == i;
    same += p == permuted(i, count, 2);
    neighbours += std::abs(p - permuted(i + 1, count, 1)) == 1;
    below_half += i < count / 2 && p < count / 2;
  }
  EXPECT_LT(fixed, 10);
  EXPECT_LT(same, 10);
  EXPECT_LT(neighbours, 12);
  EXPECT_NEAR(below_half, count / 4, 200);
}

TEST(Sampler, SequentialRowsFollowEachOtherAndWrap) {
  for (int64_t context : {1, 3, 64}) {
    for (int64_t tokens : {context + 1, 2 * context, 2 * context + 1, 7 * context + 5}) {
      const Sampler sampler(tokens, {.context = context, .rows = 3, .accumulate = 2});
      const int64_t fit = (tokens - 1) / context;
      EXPECT_EQ(sampler.rows_per_epoch(), fit);
      int64_t k = 0;
      for (int64_t step = 0; step < 5; ++step) {
        for (int64_t a = 0; a < 2; ++a) {
          for (int64_t row = 0; row < 3; ++row, ++k) {
            const int64_t start = sampler.row_start(step, a, row);
            ASSERT_EQ(start, k % fit * context);
            ASSERT_LE(start + context + 1, tokens);
          }
        }
      }
    }
  }
}

TEST(Sampler, ShuffledTakesEachRowOfAnEpochOnce) {
  for (int64_t tokens : {6, 7, 11, 60, 61, 64, 1001}) {
    const int64_t context = 5;
    const Sampler sampler(tokens, {.context = context, .rows = 1, .order = Order::shuffled, .seed = 9});
    const int64_t epoch_rows = sampler.rows_per_epoch();
    EXPECT_EQ(epoch_rows, std::max<int64_t>(1, tokens / context - 1));
    std::set<int64_t> offsets;
    for (int64_t epoch = 0; epoch < 40; ++epoch) {
      std::vector<int64_t> starts;
      for (int64_t i = 0; i < epoch_rows; ++i) starts.push_back(sampler.row_start(epoch * epoch_rows + i, 0, 0));
      std::sort(starts.begin(), starts.end());
      ASSERT_GE(starts.front(), 0);
      ASSERT_LT(starts.front(), context);
      ASSERT_LE(starts.back() + context + 1, tokens);
      for (int64_t i = 1; i < epoch_rows; ++i) ASSERT_EQ(starts[i], starts[i - 1] + context);
      offsets.insert(starts.front());
    }
    if (tokens >= 2 * context) {
      EXPECT_EQ(offsets.size(), 5u) << "every first token turns up in 40 epochs";
    }
  }
}

TEST(Sampler, OrderDependsOnSeedAndEpoch) {
  const auto starts = [](uint64_t seed, int64_t epoch) {
    const Sampler sampler(1001, {.context = 5, .rows = 1, .order = Order::shuffled, .seed = seed});
    std::vector<int64_t> result;
    for (int64_t i = 0; i < sampler.rows_per_epoch(); ++i) {
      result.push_back(sampler.row_start(epoch * sampler.rows_per_epoch() + i, 0, 0));
    }
    return result;
  };
  EXPECT_EQ(starts(1, 0), starts(1, 0));
  EXPECT_NE(starts(1, 0), starts(2, 0));
  EXPECT_NE(starts(1, 0), starts(1, 1));
}

TEST(Sampler, AccumulationOnlyGroupsRows) {
  for (Order order : {Order::sequential, Order::shuffled}) {
    const Sampler one(5000, {.context = 7, .rows = 12, .accumulate = 1, .order = order, .seed = 5});
    const Sampler three(5000, {.context = 7, .rows = 4, .accumulate = 3, .order = order, .seed = 5});
    for (int64_t step = 0; step < 200; step += 13) {
      for (int64_t row = 0; row < 12; ++row) {
        ASSERT_EQ(one.row_start(step, 0, row), three.row_start(step, row / 4, row % 4));
      }
    }
  }
}

TEST(Sampler, HugeStepsDoNotOverflow) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (Order order : {Order::sequential, Order::shuffled}) {
    const Sampler sampler(huge, {.context = 3, .rows = 1 << 30, .accumulate = 1 << 30, .order = order});
    const int64_t start = sampler.row_start(huge, (1 << 30) - 1, (1 << 30) - 1);
    EXPECT_TRUE(start >= 0 && start <= huge - 4);
  }
}

TEST(Sampler, Errors) {
  expect_config_error([] { Sampler(64, {.context = 64}); }, {"64 tokens", "65", "data.context"});
  expect_config_error([] { Sampler(0, {.context = 1}); }, {"0 tokens"});
  expect_config_error([] { Sampler(9, {.context = 0}); }, {"data.context 0"});
  expect_config_error([] { Sampler(9, {.context = 1, .rows = -1}); }, {"batch.rows -1"});
  expect_config_error([] { Sampler(9, {.context = 1, .rows = 1, .accumulate = 0}); }, {"batch.accumulate 0"});
  const Sampler sampler(9, {.context = 2, .rows = 3, .accumulate = 2});
  EXPECT_THROW(sampler.row_start(-1, 0, 0), std::logic_error);
  EXPECT_THROW(sampler.row_start(0, 2, 0), std::logic_error);
  EXPECT_THROW(sampler.row_start(0, 0, 3), std::logic_error);
}

TEST(Sampler, ALastStepIsSmallerOrDroppedAndEpochsBeginWithAStep) {
  for (const Order order : {Order::sequential, Order::shuffled}) {
    for (const int64_t tokens : {7 * 31 + 1, 9 * 31, 31 * 24 + 8}) {
      for (const int64_t rows : {1, 3, 4, 100}) {
        SamplerOptions options{.context = 31, .rows = rows, .accumulate = 2, .order = order, .seed = 5};
        const int64_t epoch_rows = Sampler(tokens, options).rows_per_epoch(), step_rows = 2 * rows;
        for (const LastBatch last : {LastBatch::drop, LastBatch::weighted}) {
          options.last = last;
          if (last == LastBatch::drop && epoch_rows < step_rows) continue;
          const Sampler sampler(tokens, options);
          const int64_t steps = last == LastBatch::drop ? epoch_rows / step_rows : (epoch_rows - 1) / step_rows + 1;
          for (const int64_t epoch : {0, 1, 5}) {
            std::set<int64_t> seen;
            int64_t count = 0;
            for (int64_t step = epoch * steps; step < (epoch + 1) * steps; ++step) {
              for (int64_t a = 0; a < 2; ++a) {
                count += sampler.rows(step, a);
                EXPECT_TRUE(last == LastBatch::weighted || sampler.rows(step, a) == rows);
                for (int64_t row = 0; row < sampler.rows(step, a); ++row) seen.insert(sampler.row_start(step, a, row));
                EXPECT_THROW(sampler.row_start(step, a, sampler.rows(step, a)), std::logic_error);
              }
            }
            EXPECT_EQ(count, last == LastBatch::drop ? steps * step_rows : epoch_rows);
            EXPECT_EQ(static_cast<int64_t>(seen.size()), count) << "each row once";
          }
        }
      }
    }
  }
}

TEST(Sampler, AnEpochThatWouldBeDroppedWholeIsAConfigError) {
  expect_config_error([] { Sampler(100, {.context = 10, .rows = 5, .accumulate = 2, .last = LastBatch::drop}); },
                      {"batch.last", "9 rows an epoch", "the 10 of a step", "weighted"});
}

}  // namespace
}  // namespace sherd
