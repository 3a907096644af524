// What an engine can be asked for, as plain values.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "sherd/engine/precision.h"
#include "sherd/recompute/recompute_policy.h"
#include "sherd/shard/sharded_model.h"
#include "sherd/shard/unit_policy.h"
#include "sherd/step/step_options.h"

namespace sherd {

/// The model's registered buffers, at the start: as each rank has them, or as rank 0 has them.
enum class Buffers { keep, broadcast };

struct EngineOptions : StepOptions {
  std::string strategy = "zero3";  // ddp, zero1, zero2, zero3 (fsdp), hsdp
  int replicate = 1;               // hsdp: how many groups of ranks hold the same shards
  ReshardPolicy reshard_after_forward = ReshardPolicy::units;
  Summing summing = Summing::apart;  // in_place: exactly one reducing backward a step; saves memory in ddp and zero1
  std::optional<Precision> precision = {};  // null: the parameters as they are, rounded to nearest
  at::Device device = at::kCPU;
  UnitPolicy units = {};                        // which units are sharded on their own; all of them
  RecomputePolicy recompute = {};               // whose activations are made again in backward; none
  std::vector<std::string> writing_units = {};  // globs: units that change their own parameters in forward
  int64_t persistent_below = 0;                 // bytes: smaller parameter groups stay whole on every rank
  Buffers buffers = Buffers::keep;
  std::optional<uint64_t> seed = {};  // of this process's random generators: each rank draws numbers of its own

  /// Throws ConfigError.
  void validate() const;
};

}  // namespace sherd
