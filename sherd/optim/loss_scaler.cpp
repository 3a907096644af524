#include "sherd/optim/loss_scaler.h"

#include <algorithm>
#include <cmath>

#include "sherd/base/error.h"

namespace sherd {

void LossScaleOptions::validate() const {
  const auto positive = [](double x) { return std::isfinite(x) && x > 0; };
  if (!positive(initial)) config_error("loss_scale.initial", "got {}, expected a number above 0; try 65536", initial);
  if (window < 1) config_error("loss_scale.window", "got {}, expected at least one step; try 1000", window);
  if (hysteresis < 1) config_error("loss_scale.hysteresis", "got {}, expected at least 1; try 2", hysteresis);
  if (!positive(minimum) || minimum > initial)
    config_error("loss_scale.minimum", "got {}, expected above 0 and at most the initial scale, {}; try 1", minimum,
                 initial);
}

LossScaler::LossScaler(const LossScaleOptions& options)
    : options_(options), scale_(options.initial), hysteresis_left_(options.hysteresis) {
  options_.validate();
}

bool LossScaler::update(Step step) {
  if (options_.kind == ScaleKind::fixed) return true;
  bool smaller_is_left = true;
  if (step == Step::overflowed) {
    if (hysteresis_left_ > 1) {
      --hysteresis_left_;
    } else {
      smaller_is_left = scale_ > options_.minimum;
      scale_ = std::max(scale_ / 2, options_.minimum);
    }
    last_overflow_ = steps_;
  } else {
    if (options_.refill == RefillHysteresis::at_every_step) hysteresis_left_ = options_.hysteresis;
    if ((steps_ - last_overflow_) % options_.window == 0) {
      hysteresis_left_ = options_.hysteresis;
      scale_ *= 2;
    }
  }
  ++steps_;
  return smaller_is_left;
}

}  // namespace sherd
