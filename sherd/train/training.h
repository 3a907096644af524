// The main job: a configuration in, a trained model in a run folder out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "sherd/config/train_config.h"

namespace sherd {

/// What one step measured; one line of metrics.jsonl.
struct StepMetrics {
  int64_t step = 0;      // counts from 1
  double loss = 0;       // mean over the global batch's targets; 0 if it has none
  double grad_norm = 0;  // before clipping
  double lr = 0;
  double tokens_per_s = 0;
  double step_s = 0;
  double memory_mib = 0;  // proportional, all ranks
  int64_t tokens = 0;     // of this step, all ranks
  int64_t targets = 0;    // of them: what the loss counts
  std::optional<double> validation_loss;
  std::optional<double> loss_scale;  // that the step was made with, where there is one
  int64_t skipped_steps = 0;         // so far, for overflow
};

/// on_step and on_message are called on rank 0 only; stop_requested is asked on every rank once a step.
struct TrainingHooks {
  std::function<void(const StepMetrics&)> on_step;
  std::function<void(std::string_view)> on_message;
  std::function<bool()> stop_requested;
};

struct TrainingResult {
  enum class End { finished, stopped };
  int64_t steps = 0;
  double final_loss = 0;
  std::string folder;
  End end = End::finished;
};

/// Everything that can be found wrong before any rank starts. Throws ConfigError.
void validate_training(const TrainConfig& config, int world);

/// Whether somebody has called validate_training() for this run: then no rank reads all tokens once more.
enum class Validated { not_yet, already };

/// Trains as the rank that the environment says (torchrun's variables), or alone. Throws ConfigError before any work is
/// done; FaultError in mid-run, after telling the other ranks.
TrainingResult run_training(const TrainConfig& config, const TrainingHooks& hooks,
                            Validated validated = Validated::not_yet);

}  // namespace sherd
