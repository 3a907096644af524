// Loss scaling for fp16: the loss is multiplied so that small gradients are not lost, and the update divides by it.
//
// Dynamic scaling by DeepSpeed's rule (runtime/fp16/loss_scaler.py), which is that of Micikevicius et al., "Mixed
// precision training" (2018), with a hysteresis: after `hysteresis` overflows since the last growth (and each one after
// them) the scale is halved, not below `minimum`; `window` steps without one double it.
#pragma once

#include <cstdint>

namespace sherd {

enum class ScaleKind { dynamic, fixed };
/// When a clean step gives back the overflows that may be overlooked.
enum class RefillHysteresis { at_growth, at_every_step };
/// When the scale doubles: with the last clean step of a window, or with the one after it (DeepSpeed 0.19.8).
enum class Growth { in_window, after_window };

struct LossScaleOptions {
  ScaleKind kind = ScaleKind::dynamic;
  double initial = 65536;
  int64_t window = 1000;   // steps
  int64_t hysteresis = 2;  // overflows
  RefillHysteresis refill = RefillHysteresis::at_growth;
  double minimum = 1;
  Growth growth = Growth::in_window;

  /// Throws ConfigError.
  void validate() const;
};

/// What a checkpoint keeps of a scaler.
struct LossScaleState {
  double scale = 1;
  int64_t hysteresis_left = 1;
  int64_t steps = 0, last_overflow = -1;
};

class LossScaler {
 public:
  explicit LossScaler(const LossScaleOptions& options);

  /// Of the step under way. A power of two where the options are.
  double scale() const { return state_.scale; }
  /// A step is over: its gradients overflowed, and it was skipped, or it was made. False: the overflow came at the
  /// minimum, and there is no smaller scale to try.
  enum class Step { made, overflowed };
  bool update(Step step);

  const LossScaleState& state() const { return state_; }
  /// Goes on from there, by this scaler's own options: a fixed scale stays what it is.
  void set_state(const LossScaleState& state) {
    if (options_.kind == ScaleKind::dynamic) state_ = state;
  }

 private:
  LossScaleOptions options_;
  LossScaleState state_;
};

}  // namespace sherd
