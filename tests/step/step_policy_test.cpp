#include "sherd/step/step_policy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "sherd/base/error.h"

namespace sherd::testing {
namespace {

using Update = Verdict::Update;

std::string no_origin() {
  ADD_FAILURE() << "asked for the origin of a step that goes on";
  return "";
}

/// The text that judge() throws with for a norm, or "".
std::string refusal(StepJudge& judge, double norm) {
  try {
    judge.judge(norm, [] { return "the gradient of 'w'"; });
  } catch (const FaultError& error) {
    return error.what();
  }
  return "";
}

TEST(ClipScale, IsTorchsRule) {
  EXPECT_EQ(clip_scale(0.5, 1), 1);
  EXPECT_EQ(clip_scale(0, 1), 1);
  EXPECT_EQ(clip_scale(4, 1), 1 / (4 + 1e-6));
  EXPECT_EQ(clip_scale(INFINITY, 1), 0);
  EXPECT_TRUE(std::isnan(clip_scale(NAN, 1)));
}

TEST(StepJudge, UnscalesAndClipsByTheUnscaledNorm) {
  StepJudge judge({.clip = 2.0, .loss_scale = LossScaleOptions{.kind = ScaleKind::fixed, .initial = 8}});
  const Verdict small = judge.judge(8, no_origin), large = judge.judge(80, no_origin);
  EXPECT_EQ(small.update, Update::made);
  EXPECT_EQ(small.grad_norm, 1);
  EXPECT_EQ(small.gradient_scale, 1.0 / 8);
  EXPECT_EQ(large.grad_norm, 10);
  EXPECT_EQ(large.gradient_scale, 1.0 / 8 * (2 / (10 + 1e-6)));
  EXPECT_EQ(judge.made(), 2);
  EXPECT_EQ(StepJudge({.clip = std::nullopt}).judge(1e9, no_origin).gradient_scale, 1);
}

TEST(StepJudge, SkipsOverflowsUnderALossScaleUntilItCannotFall) {
  const LossScaleOptions scale{.initial = 4, .hysteresis = 1, .minimum = 2};
  StepJudge judge({.loss_scale = scale});
  EXPECT_EQ(judge.judge(INFINITY, no_origin).update, Update::skipped);
  EXPECT_EQ(judge.loss_scale(), 2);
  EXPECT_EQ(judge.judge(1, no_origin).loss_scale, 2);
  EXPECT_EQ(judge.made(), 1);
  EXPECT_EQ(judge.skipped(), 1);
  const std::string text = refusal(judge, NAN);
  EXPECT_NE(
      text.find("[loss_scale] got gradients that overflow at the smallest loss scale, 2, in step 3: the first was "
                "the gradient of 'w'"),
      std::string::npos)
      << text;
  EXPECT_EQ(judge.attempts(), 2) << "a step that is refused does not count";
  StepJudge goes_on({.loss_scale = scale, .at_smallest_scale = AtSmallestScale::skip});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(goes_on.judge(NAN, no_origin).update, Update::skipped);
  EXPECT_EQ(goes_on.skipped(), 5);
}

TEST(StepJudge, StopsSkipsOrPassesWhatIsNotFiniteWithoutAScale) {
  StepJudge stops({});
  EXPECT_NE(refusal(stops, INFINITY)
                .find("[step] got a gradient norm of inf in step 1: the first that was not finite "
                      "was the gradient of 'w'"),
            std::string::npos);
  StepJudge skips({.non_finite = NonFiniteGradients::skip}), passes({.non_finite = NonFiniteGradients::pass});
  EXPECT_EQ(skips.judge(NAN, no_origin).update, Update::skipped);
  EXPECT_EQ(skips.skipped(), 1);
  EXPECT_EQ(passes.judge(NAN, no_origin).update, Update::made);
  EXPECT_EQ(passes.made(), 1);
}

TEST(StepJudge, GoesOnFromWhatWasSaved) {
  const StepPolicy policy{.loss_scale = LossScaleOptions{.initial = 16, .hysteresis = 1}};
  StepJudge first(policy), second(policy);
  first.judge(INFINITY, no_origin);
  first.judge(1, no_origin);
  second.restore(first.made(), first.skipped(), first.scaler()->state());
  EXPECT_EQ(second.loss_scale(), 8);
  EXPECT_EQ(second.attempts(), 2);
}

TEST(StepPolicy, RefusesWhatCannotBe) {
  EXPECT_THROW(StepJudge({.clip = 0.0}), ConfigError);
  EXPECT_THROW(StepJudge({.clip = NAN}), ConfigError);
  EXPECT_THROW(StepJudge({.loss_scale = LossScaleOptions{.window = 0}}), ConfigError);
  StepOptions options;
  options.update.kind = UpdateRuleOptions::Kind::sgd;
  options.moments = MomentType::eight_bits;
  try {
    options.validate();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "[optimizer.type] got 8-bit moments with sgd, expected one of adamw, adam, lion; try fp32 moments");
  }
}

}  // namespace
}  // namespace sherd::testing
