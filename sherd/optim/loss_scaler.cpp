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
    : options_(options), state_{.scale = options.initial, .hysteresis_left = options.hysteresis} {
  options_.validate();
}

bool LossScaler::update(Step step) {
  if (options_.kind == ScaleKind::fixed) return true;
  bool smaller_is_left = true;
  if (step == Step::overflowed) {
    if (state_.hysteresis_left > 1) {
      --state_.hysteresis_left;
    } else {
      smaller_is_left = state_.scale > options_.minimum;
      state_.scale = std::max(state_.scale / 2, options_.minimum);
    }
    state_.last_overflow = state_.steps;
  } else {
    if (options_.refill == RefillHysteresis::at_every_step) state_.hysteresis_left = options_.hysteresis;
    const int64_t clean = state_.steps - state_.last_overflow - (options_.growth == Growth::after_window ? 1 : 0);
    if (clean > 0 && clean % options_.window == 0) {
      state_.hysteresis_left = options_.hysteresis;
      state_.scale *= 2;
    }
  }
  ++state_.steps;
  return smaller_is_left;
}

}  // namespace sherd
