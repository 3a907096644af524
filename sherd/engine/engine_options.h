// What an engine can be asked for, as plain values.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "sherd/engine/precision.h"
#include "sherd/optim/loss_scaler.h"
#include "sherd/optim/muon.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/optim/update_rule.h"
#include "sherd/recompute/recompute_policy.h"
#include "sherd/shard/sharded_model.h"
#include "sherd/shard/unit_policy.h"

namespace sherd {

/// What step() does with gradients that are not finite, where no loss scale explains them.
enum class NonFiniteGradients {
  stop,  // throws FaultError before anything is updated; it names where they came from
  pass,  // updates all the same, as torch does
};

/// The model's registered buffers, at the start: as each rank has them, or as rank 0 has them.
enum class Buffers { keep, broadcast };

struct EngineOptions {
  std::string strategy = "zero3";  // ddp, zero1, zero2, zero3 (fsdp), hsdp
  int replicate = 1;               // hsdp: how many groups of ranks hold the same shards
  ReshardPolicy reshard_after_forward = ReshardPolicy::units;
  Summing summing = Summing::apart;  // in_place: exactly one reducing backward a step; saves memory in ddp and zero1
  std::optional<double> clip = 1.0;  // largest global gradient norm
  UpdateRuleOptions update = {};     // AdamW
  std::optional<MuonOptions> muon = {};                    // what updates matrices; `update` all else
  std::vector<std::string> not_muon = default_not_muon();  // globs: but not these matrices
  Hyperparameters optimizer = {};
  std::vector<OptimGroup> optimizer_groups = {};
  MomentType moments = MomentType::fp32;       // adamw, adam
  std::vector<std::string> fp32_moments = {};  // globs: parameters with fp32 moments all the same
  std::optional<Precision> precision = {};     // null: the parameters as they are, rounded to nearest
  at::Device device = at::kCPU;
  UnitPolicy units = {};                        // which units are sharded on their own; all of them
  RecomputePolicy recompute = {};               // whose activations are made again in backward; none
  std::vector<std::string> writing_units = {};  // globs: units that change their own parameters in forward
  int64_t persistent_below = 0;                 // bytes: smaller parameter groups stay whole on every rank
  Buffers buffers = Buffers::keep;
  std::optional<LossScaleOptions> loss_scale = {};  // null: 1
  NonFiniteGradients non_finite = NonFiniteGradients::stop;
  std::optional<uint64_t> seed = {};  // of this process's random generators: each rank draws numbers of its own

  /// Throws ConfigError.
  void validate() const;
};

}  // namespace sherd
