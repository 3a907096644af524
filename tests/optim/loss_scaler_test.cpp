#include "sherd/optim/loss_scaler.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

constexpr auto kMade = LossScaler::Step::made, kOverflowed = LossScaler::Step::overflowed;

std::vector<double> trajectory(LossScaleOptions options, const std::string& steps) {
  LossScaler scaler(options);
  std::vector<double> scales;
  for (const char step : steps) {
    EXPECT_TRUE(scaler.update(step == 'o' ? kOverflowed : kMade));
    scales.push_back(scaler.scale());
  }
  return scales;
}

// What DeepSpeed's own tests say: test_dynamic_loss_scale.py, with its settings.
TEST(LossScaler, DoublesAfterEachWindowWithoutOverflow) {
  EXPECT_EQ(trajectory({.initial = 256, .window = 2, .hysteresis = 1}, "......"),
            (std::vector<double>{256, 512, 512, 1024, 1024, 2048}));
}
TEST(LossScaler, HalvesAtEachOverflowDownToTheMinimum) {
  EXPECT_EQ(trajectory({.initial = 16, .window = 2, .hysteresis = 1, .minimum = 2}, "ooo"),
            (std::vector<double>{8, 4, 2}));
}
TEST(LossScaler, CountsTheWindowFromTheLastOverflow) {
  EXPECT_EQ(trajectory({.initial = 256, .window = 2, .hysteresis = 1}, "oo..o...."),
            (std::vector<double>{128, 64, 64, 128, 64, 64, 128, 128, 256}));
}
TEST(LossScaler, OverlooksTheFirstOverflows) {
  EXPECT_EQ(trajectory({.initial = 256, .window = 4, .hysteresis = 3}, "o.o.o.o"),
            (std::vector<double>{256, 256, 256, 256, 128, 128, 64}));
}
TEST(LossScaler, GrowthGivesTheHysteresisBack) {
  EXPECT_EQ(trajectory({.initial = 256, .window = 2, .hysteresis = 2}, "o..o..o"),
            (std::vector<double>{256, 256, 512, 512, 512, 1024, 1024}));
}
TEST(LossScaler, OrEveryStepDoes) {
  LossScaleOptions options{.initial = 256, .window = 100, .hysteresis = 2, .refill = RefillHysteresis::at_every_step};
  EXPECT_EQ(trajectory(options, "o.o.oo"), (std::vector<double>{256, 256, 256, 256, 256, 128}));
  options.refill = RefillHysteresis::at_growth;
  EXPECT_EQ(trajectory(options, "o.o.oo"), (std::vector<double>{256, 256, 128, 128, 64, 32}));
}

TEST(LossScaler, SaysWhenNothingSmallerIsLeft) {
  LossScaler scaler({.initial = 4, .hysteresis = 2});
  EXPECT_TRUE(scaler.update(kOverflowed));  // overlooked
  EXPECT_TRUE(scaler.update(kOverflowed));  // 2
  EXPECT_TRUE(scaler.update(kOverflowed));  // 1
  EXPECT_FALSE(scaler.update(kOverflowed));
  EXPECT_EQ(scaler.scale(), 1);
}

TEST(LossScaler, AFixedScaleStays) {
  EXPECT_EQ(trajectory({.kind = ScaleKind::fixed, .initial = 128, .window = 1}, "o.o..o"), std::vector<double>(6, 128));
}

TEST(LossScaler, StaysBetweenItsBoundsWhateverHappens) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const LossScaleOptions options{.initial = std::exp2(static_cast<double>(random() % 20)),
                                   .window = 1 + static_cast<int64_t>(random() % 20),
                                   .hysteresis = 1 + static_cast<int64_t>(random() % 4)};
    LossScaler scaler(options);
    for (int step = 0; step < 200; ++step) {
      const double before = scaler.scale();
      const auto what = random() % 3 == 0 ? kOverflowed : kMade;
      const bool left = scaler.update(what);
      EXPECT_GE(scaler.scale(), options.minimum);
      EXPECT_TRUE(scaler.scale() == before || scaler.scale() == (what == kMade ? 2 * before : before / 2));
      EXPECT_TRUE(left || before == options.minimum);
    }
  }
}

TEST(LossScaler, ImpossibleOptionsAreConfigErrors) {
  expect_config_error([] { LossScaler({.initial = 0}); }, {"loss_scale.initial", "got 0"});
  expect_config_error([] { LossScaler({.window = 0}); }, {"loss_scale.window"});
  expect_config_error([] { LossScaler({.hysteresis = 0}); }, {"loss_scale.hysteresis"});
  expect_config_error([] { LossScaler({.initial = 2, .minimum = 4}); }, {"loss_scale.minimum", "got 4"});
}

TEST(LossScaler, GoesOnFromAStateButKeepsAFixedScale) {
  LossScaler first({.initial = 1024, .window = 3, .hysteresis = 1});
  first.update(LossScaler::Step::overflowed);
  LossScaler second({.initial = 8, .window = 3, .hysteresis = 1});
  second.set_state(first.state());
  for (int step = 0; step < 7; ++step) {
    EXPECT_EQ(first.scale(), second.scale()) << step;
    first.update(LossScaler::Step::made);
    second.update(LossScaler::Step::made);
  }
  LossScaler fixed({.kind = ScaleKind::fixed, .initial = 128});
  fixed.set_state(first.state());
  EXPECT_EQ(fixed.scale(), 128);
}

}  // namespace
}  // namespace sherd
