#include "sherd/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "sherd/base/error.h"

namespace sherd {

ScheduleOptions::Kind schedule_kind(std::string_view name) {
  return named(kScheduleNames, name, "schedule.type", "constant");
}

void ScheduleOptions::validate() const {
  if (steps < 1)
    config_error("schedule.steps", "got {}, expected at least 1; try the number of steps of the run", steps);
  if (warmup < 0 || warmup > steps) {
    config_error("schedule.warmup", "got {}, expected 0 to {} (the steps of the run); try {}", warmup, steps,
                 std::clamp<int64_t>(warmup, 0, steps / 10));
  }
  if (!(final_ratio >= 0.0 && final_ratio <= 1.0)) {
    config_error("schedule.final_ratio", "got {}, expected 0 to 1 (a share of the learning rate); try 0.1",
                 final_ratio);
  }
}

double learning_rate_scale(const ScheduleOptions& options, int64_t step) {
  SHERD_CHECK(step >= 0);
  if (step < options.warmup) return static_cast<double>(step + 1) / static_cast<double>(options.warmup);
  if (options.kind == ScheduleOptions::Kind::constant) return 1.0;

  const int64_t peak = std::max<int64_t>(options.warmup - 1, 0);
  const int64_t last = options.steps - 1;
  if (last <= peak) return step <= peak ? 1.0 : options.final_ratio;
  const double progress = std::min(1.0, static_cast<double>(step - peak) / static_cast<double>(last - peak));
  const double share = options.kind == ScheduleOptions::Kind::linear
                           ? 1.0 - progress
                           : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return options.final_ratio + (1.0 - options.final_ratio) * share;
}

}  // namespace sherd
