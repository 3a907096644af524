#include "sherd/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using Kind = ScheduleOptions::Kind;

TEST(Schedule, WarmupRisesFromOneOverWarmupToOne) {
  for (const Kind kind : {Kind::constant, Kind::linear, Kind::cosine}) {
    const ScheduleOptions options{.kind = kind, .warmup = 4, .steps = 20};
    for (int64_t step = 0; step < 4; ++step) {
      EXPECT_DOUBLE_EQ(learning_rate_scale(options, step), static_cast<double>(step + 1) / 4.0);
    }
  }
}

TEST(Schedule, ConstantStaysAtOne) {
  const ScheduleOptions options{.kind = Kind::constant, .warmup = 2, .steps = 10};
  for (const int64_t step : {1, 2, 5, 9, 10, 1000}) EXPECT_EQ(learning_rate_scale(options, step), 1.0);
}

TEST(Schedule, LinearFallsEvenlyToTheFinalRatioAtTheLastStep) {
  const ScheduleOptions options{.kind = Kind::linear, .warmup = 3, .steps = 13, .final_ratio = 0.2};
  for (int64_t step = 2; step < 13; ++step) {
    EXPECT_NEAR(learning_rate_scale(options, step), 1.0 - 0.08 * static_cast<double>(step - 2), 1e-15);
  }
  EXPECT_DOUBLE_EQ(learning_rate_scale(options, 12), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate_scale(options, 500), 0.2);
}

TEST(Schedule, CosineHasItsEndsAndItsMiddle) {
  const ScheduleOptions options{.kind = Kind::cosine, .warmup = 0, .steps = 101, .final_ratio = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate_scale(options, 0), 1.0);
  EXPECT_NEAR(learning_rate_scale(options, 25), 0.1 + 0.9 * 0.5 * (1.0 + std::sqrt(0.5)), 1e-15);
  EXPECT_NEAR(learning_rate_scale(options, 50), 0.55, 1e-15);
  EXPECT_NEAR(learning_rate_scale(options, 100), 0.1, 1e-15);
  EXPECT_NEAR(learning_rate_scale(options, 200), 0.1, 1e-15);
}

TEST(Schedule, NeverRisesAfterWarmup) {
  for (const Kind kind : {Kind::constant, Kind::linear, Kind::cosine}) {
    for (const int64_t warmup : {0, 1, 7}) {
      const ScheduleOptions options{.kind = kind, .warmup = warmup, .steps = 40, .final_ratio = 0.05};
      double last = 1.0;
      for (int64_t step = warmup; step < 45; ++step) {
        const double scale = learning_rate_scale(options, step);
        EXPECT_LE(scale, last);
        EXPECT_GE(scale, 0.05 - 1e-15);
        last = scale;
      }
    }
  }
}

TEST(Schedule, RunsTooShortToDecayKeepTheirPeak) {
  for (const Kind kind : {Kind::linear, Kind::cosine}) {
    EXPECT_EQ(learning_rate_scale({.kind = kind, .warmup = 0, .steps = 1}, 0), 1.0);
    const ScheduleOptions all_warmup{.kind = kind, .warmup = 5, .steps = 5, .final_ratio = 0.5};
    EXPECT_EQ(learning_rate_scale(all_warmup, 4), 1.0);
    EXPECT_EQ(learning_rate_scale(all_warmup, 5), 0.5);
  }
}

TEST(Schedule, ImpossibleOptionsAreErrors) {
  EXPECT_NO_THROW((ScheduleOptions{.warmup = 5, .steps = 5}.validate()));
  EXPECT_THROW((ScheduleOptions{.steps = 0}.validate()), ConfigError);
  EXPECT_THROW((ScheduleOptions{.warmup = -1, .steps = 5}.validate()), ConfigError);
  EXPECT_THROW((ScheduleOptions{.warmup = 6, .steps = 5}.validate()), ConfigError);
  EXPECT_THROW((ScheduleOptions{.steps = 5, .final_ratio = -0.1}.validate()), ConfigError);
  EXPECT_THROW((ScheduleOptions{.steps = 5, .final_ratio = 1.1}.validate()), ConfigError);
  EXPECT_THROW((ScheduleOptions{.steps = 5, .final_ratio = std::numeric_limits<double>::quiet_NaN()}.validate()),
               ConfigError);
  EXPECT_THROW(learning_rate_scale({.steps = 5}, -1), std::logic_error);
}

}  // namespace
}  // namespace sherd
