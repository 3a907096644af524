// Whether a step is made, and by how much its gradients are multiplied: loss scale, skip rule and clipping, for every
// front end.
#pragma once

#include <functional>
#include <string>

#include "sherd/step/step_options.h"

namespace sherd {

struct Verdict {
  enum class Update { made, skipped };
  Update update = Update::made;
  double grad_norm = 0;       // of the unscaled gradients, before clipping
  double loss_scale = 1;      // that the step was made with
  double gradient_scale = 1;  // what an update multiplies gradients with: unscales and clips
};

/// torch's rule: at most 1; what is no number stays none.
double clip_scale(double norm, double largest);

class StepJudge {
 public:
  /// Throws ConfigError.
  explicit StepJudge(const StepPolicy& policy);

  /// Of the step under way; 1 without loss scaling.
  double loss_scale() const { return scaler_ ? scaler_->scale() : 1.0; }
  /// Ends the attempt of a step whose gradients have this norm, the same on all ranks, under loss_scale(): the scale
  /// may change, and the attempt counts as made or as skipped. Throws FaultError for gradients that are not finite
  /// where the policy says stop; `origin` names the first of them, and is called on all ranks or on none.
  Verdict judge(double scaled_norm, const std::function<std::string()>& origin);

  int64_t made() const { return made_; }
  int64_t skipped() const { return skipped_; }
  int64_t attempts() const { return made_ + skipped_; }
  const std::optional<LossScaler>& scaler() const { return scaler_; }
  /// From a checkpoint.
  void restore(int64_t made, int64_t skipped, const std::optional<LossScaleState>& scale);

 private:
  Verdict::Update decide(double scaled_norm, const std::function<std::string()>& origin);

  StepPolicy policy_;
  std::optional<LossScaler> scaler_;
  int64_t made_ = 0, skipped_ = 0;
};

}  // namespace sherd
