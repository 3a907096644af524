// Learning-rate schedules as a pure function of the step: nothing to save, so a resumed run needs no scheduler state.
//
// Warm-up rises linearly from 1/warmup at step 0 to 1 at step warmup-1. From there `constant` stays at 1; `linear` and
// `cosine` fall to final_ratio at the last step (steps-1) and stay there.
#pragma once

#include <cstdint>
#include <string_view>

#include "sherd/base/names.h"

namespace sherd {

struct ScheduleOptions {
  enum class Kind { constant, linear, cosine };
  Kind kind = Kind::constant;
  int64_t warmup = 0;        // steps of linear warm-up
  int64_t steps = 1;         // of the whole run, warm-up included
  double final_ratio = 0.0;  // of the learning rate, at the last step; unused by `constant`

  /// Throws ConfigError.
  void validate() const;
};

inline constexpr Name<ScheduleOptions::Kind> kScheduleNames[] = {{ScheduleOptions::Kind::constant, "constant"},
                                                                 {ScheduleOptions::Kind::linear, "linear"},
                                                                 {ScheduleOptions::Kind::cosine, "cosine"}};

/// constant, linear or cosine by name. Throws ConfigError.
ScheduleOptions::Kind schedule_kind(std::string_view name);

/// What the learning rate is multiplied with at `step`, counted from 0.
double learning_rate_scale(const ScheduleOptions& options, int64_t step);

}  // namespace sherd
