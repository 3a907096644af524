#include "sherd/data/step_plan.h"

#include <gtest/gtest.h>

#include <map>

#include "sherd/data/target_rules.h"

namespace sherd {
namespace {

TEST(PlanStep, EveryRowOnceAndAsManyMicroBatchesOnEveryRank) {
  for (const LastBatch last : {LastBatch::next_epoch, LastBatch::weighted}) {
    for (const int64_t rows : {1, 4, 5, 9}) {
      const Sampler sampler(10 * 22 + 1, {.context = 10, .rows = rows, .accumulate = 3, .last = last});
      for (const int world : {1, 2, 3, 4, 7}) {
        for (const int64_t micro : {0, 1, 2, 100}) {
          for (int64_t step = 0; step < 4; ++step) {
            std::map<std::pair<int64_t, int64_t>, int> seen;
            const size_t count = plan_step(sampler, step, micro, 0, world).size();
            EXPECT_LE(count, plan_step(sampler, 0, micro, 0, world).size());
            for (int rank = 0; rank < world; ++rank) {
              const auto plan = plan_step(sampler, step, micro, rank, world);
              ASSERT_EQ(plan.size(), count);
              for (const MicroBatch& part : plan) {
                ASSERT_TRUE(part.rows.count >= 1 && (micro == 0 || part.rows.count <= micro));
                ASSERT_LE(part.rows.first + part.rows.count, sampler.rows(step, part.accumulation));
                if (!part.counts) continue;
                for (int64_t r = 0; r < part.rows.count; ++r) ++seen[{part.accumulation, part.rows.first + r}];
              }
            }
            EXPECT_EQ(static_cast<int64_t>(seen.size()), count_rows(sampler, step));
            for (const auto& [row, times] : seen) EXPECT_EQ(times, 1);
          }
        }
      }
    }
  }
}

TEST(CountTargets, AreThoseThatTheBatchesHold) {
  const auto source = with_target_rules(synthetic_source(20, 3), {.mask = "", .separator = 7});
  const Sampler sampler(
      997, {.context = 13, .rows = 5, .accumulate = 2, .order = Order::shuffled, .last = LastBatch::weighted});
  for (int64_t step = 0; step < 20; ++step) {
    int64_t expected = 0;
    for (int64_t a = 0; a < 2; ++a) {
      const Batch batch = read_batch(*source, sampler, step, a, {0, sampler.rows(step, a)});
      for (int64_t i = 0; i < batch.targets.numel(); ++i) {
        const bool counts = batch.targets.const_data_ptr<int64_t>()[i] != kNoTarget;
        EXPECT_EQ(counts, batch.tokens.const_data_ptr<int64_t>()[i] != 7);
        expected += counts;
      }
    }
    EXPECT_EQ(count_targets(*source, sampler, step), expected);
    EXPECT_EQ(count_targets(*synthetic_source(20, 3), sampler, step), count_rows(sampler, step) * 13);
  }
}

}  // namespace
}  // namespace sherd
