#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace sherd {
namespace {

/// "940", "12.3k", "4.56M".
std::string short_number(double value) {
  if (value < 1e3) return fmt::format("{:.0f}", value);
  if (value < 1e6) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.2f}M", value / 1e6);
}

/// How long plain lines wait for each other: a second at first, then a fiftieth of the time so far, at most 30 s.
double line_interval_s(double elapsed_s) { return std::clamp(elapsed_s / 50, 1.0, 30.0); }

}  // namespace

std::string progress_line(const StepMetrics& metrics, int64_t steps) {
  std::string line = fmt::format("step {}/{}  loss {:.4f}", metrics.step, steps, metrics.loss);
  if (metrics.validation_loss) line += fmt::format("  validation {:.4f}", *metrics.validation_loss);
  if (metrics.loss_scale) line += fmt::format("  scale {:g} ({} skipped)", *metrics.loss_scale, metrics.skipped_steps);
  return line + fmt::format("  {} tok/s  {:.3f} s/step  memory {:.0f} MiB", short_number(metrics.tokens_per_s),
                            metrics.step_s, metrics.memory_mib);
}

void Progress::step(const StepMetrics& metrics) {
  const std::string line = progress_line(metrics, steps_);
  const auto now = std::chrono::steady_clock::now();
  const auto seconds = [](auto duration) { return std::chrono::duration<double>(duration).count(); };
  const bool due = !shown_ || metrics.step >= steps_ || metrics.validation_loss || output_ == Output::terminal ||
                   steps_ <= kFewSteps || seconds(now - *shown_) >= line_interval_s(seconds(now - start_));
  if (!due) {
    pending_ = line;
    return;
  }
  pending_.clear();
  shown_ = now;
  if (output_ == Output::lines) {
    fmt::print("{}\n", line);
  } else {
    fmt::print("\r\x1b[K{}", line);
    line_open_ = true;
    if (metrics.validation_loss) end_line();
  }
  std::fflush(stdout);
}

void Progress::message(std::string_view text) {
  end_line();
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

void Progress::finish() {
  end_line();
  if (!pending_.empty()) fmt::print("{}\n", pending_);
  pending_.clear();
  std::fflush(stdout);
}

void Progress::end_line() {
  if (line_open_) fmt::print("\n");
  line_open_ = false;
}

Progress::Output progress_output() {
  const char* launcher = std::getenv("SHERD_TTY");
  const bool terminal = launcher != nullptr ? std::string_view(launcher) == "1" : ::isatty(STDOUT_FILENO) == 1;
  return terminal ? Progress::Output::terminal : Progress::Output::lines;
}

}  // namespace sherd
