// What a step can be asked for, as plain values.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sherd/optim/loss_scaler.h"
#include "sherd/optim/muon.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/optim/schedule.h"
#include "sherd/optim/update_rule.h"

namespace sherd {

/// What a step does with gradients that are not finite, where no loss scale explains them.
enum class NonFiniteGradients {
  stop,  // throws FaultError before anything is updated; it names where they came from
  skip,  // leaves parameters, states and schedule as they are
  pass,  // updates all the same, as torch does
};

/// The same under a dynamic loss scale that cannot fall any more.
enum class AtSmallestScale { stop, skip };

/// What decides whether a step is made, and by how much gradients are multiplied.
struct StepPolicy {
  std::optional<double> clip = 1.0;                 // largest global gradient norm
  std::optional<LossScaleOptions> loss_scale = {};  // null: 1
  NonFiniteGradients non_finite = NonFiniteGradients::stop;
  AtSmallestScale at_smallest_scale = AtSmallestScale::stop;

  /// Throws ConfigError.
  void validate() const;
};

struct StepOptions : StepPolicy {
  UpdateRuleOptions update = {};                           // AdamW
  std::optional<MuonOptions> muon = {};                    // what updates matrices; `update` all else
  std::vector<std::string> not_muon = default_not_muon();  // globs: but not these matrices
  Hyperparameters optimizer = {};
  std::vector<OptimGroup> optimizer_groups = {};
  MomentType moments = MomentType::fp32;
  std::vector<std::string> fp32_moments = {};  // globs: parameters with fp32 moments all the same
  ScheduleOptions schedule = {};               // of the learning rate, over updates that are made

  /// Throws ConfigError.
  void validate() const;
};

}  // namespace sherd
