#include "sherd/step/step_policy.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "sherd/base/error.h"
#include "sherd/optim/rule_table.h"

namespace sherd {

namespace {

std::vector<std::string_view> rules_with_eight_bits() {
  std::vector<std::string_view> names;
  for (const RuleEntry& entry : update_rules())
    if (entry.moments == RuleEntry::Moments::fp32_or_eight_bits) names.push_back(entry.name);
  return names;
}

}  // namespace

void StepPolicy::validate() const {
  if (clip && !(*clip > 0)) config_error("clip", "got {}, expected a number above 0, or null; try 1.0", *clip);
  if (loss_scale) loss_scale->validate();
}

void StepOptions::validate() const {
  StepPolicy::validate();
  update.validate();
  optimizer.validate();
  schedule.validate();
  if (muon) muon->validate();
  if (moments == MomentType::eight_bits && rule_entry(update.kind).moments == RuleEntry::Moments::fp32)
    config_error("optimizer.type", "got 8-bit moments with {}, expected one of {}; try fp32 moments",
                 name_of(update.kind), fmt::join(rules_with_eight_bits(), ", "));
}

double clip_scale(double norm, double largest) {
  const double scale = largest / (norm + 1e-6);
  return scale > 1 ? 1 : scale;
}

StepJudge::StepJudge(const StepPolicy& policy) : policy_(policy) {
  policy_.validate();
  if (policy_.loss_scale) scaler_.emplace(*policy_.loss_scale);
}

Verdict StepJudge::judge(double scaled_norm, const std::function<std::string()>& origin) {
  Verdict verdict;
  verdict.loss_scale = loss_scale();
  verdict.grad_norm = scaled_norm / verdict.loss_scale;
  verdict.gradient_scale = 1 / verdict.loss_scale;
  verdict.update = decide(scaled_norm, origin);
  ++(verdict.update == Verdict::Update::made ? made_ : skipped_);
  if (verdict.update == Verdict::Update::made && policy_.clip)
    verdict.gradient_scale *= clip_scale(verdict.grad_norm, *policy_.clip);
  return verdict;
}

// The norm is the same on all ranks, and finite if all gradients are: no other exchange is needed to agree.
Verdict::Update StepJudge::decide(double scaled_norm, const std::function<std::string()>& origin) {
  using Update = Verdict::Update;
  const bool finite = std::isfinite(scaled_norm);
  const double scale = loss_scale();
  const bool smaller_is_left =
      !scaler_ || scaler_->update(finite ? LossScaler::Step::made : LossScaler::Step::overflowed);
  if (finite) return Update::made;
  if (scaler_) {
    if (!smaller_is_left && policy_.at_smallest_scale == AtSmallestScale::stop)
      fault("loss_scale",
            "got gradients that overflow at the smallest loss scale, {}, in step {}: the first was {}; expected finite "
            "ones; try a lower learning rate, clip 1.0, or bf16",
            scale, attempts() + 1, origin());
    return Update::skipped;
  }
  if (policy_.non_finite == NonFiniteGradients::stop)
    fault("step",
          "got a gradient norm of {} in step {}: the first that was not finite was {}; expected finite numbers; try a "
          "lower learning rate, a longer warm-up, or clip 1.0",
          scaled_norm, attempts() + 1, origin());
  return policy_.non_finite == NonFiniteGradients::skip ? Update::skipped : Update::made;
}

void StepJudge::restore(int64_t made, int64_t skipped, const std::optional<LossScaleState>& scale) {
  made_ = made;
  skipped_ = skipped;
  if (scaler_ && scale) scaler_->set_state(*scale);
}

}  // namespace sherd
