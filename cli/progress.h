// What a user sees of a training run on stdout: one rewritten line on a terminal, else plain lines: each step of a
// short run; of a longer one about one a second, fewer as it grows, and always the first, the last and those with a
// validation loss.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "sherd/train/training.h"

namespace sherd {

/// "step 120/1000  loss 2.3451  12.3k tok/s  0.410 s/step  memory 812 MiB"
std::string progress_line(const StepMetrics& metrics, int64_t steps);

class Progress {
 public:
  enum class Output { terminal, lines };
  static constexpr int64_t kFewSteps = 30;  // so many are all shown

  Progress(int64_t steps, Output output) : steps_(steps), output_(output) {}

  void step(const StepMetrics& metrics);
  void message(std::string_view text);  // a line of its own
  void finish();                        // ends the line, and shows the last step if it was not

 private:
  using Clock = std::chrono::steady_clock;
  void end_line();

  int64_t steps_;
  Output output_;
  Clock::time_point start_ = Clock::now();
  std::optional<Clock::time_point> shown_;  // when a step was last shown
  std::string pending_;                     // the last step, while it is not shown
  bool line_open_ = false;
};

/// Terminal or not: what the launcher says of its own stdout (SHERD_TTY), else stdout itself.
Progress::Output progress_output();

}  // namespace sherd
