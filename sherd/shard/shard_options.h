// How a model is to be sharded, as plain values.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "sherd/comm/codec.h"
#include "sherd/comm/mesh.h"
#include "sherd/recompute/recompute_policy.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/store.h"
#include "sherd/shard/strategy.h"
#include "sherd/shard/unit_policy.h"

namespace sherd {

/// What a parameter is beside the type of its tensor, which is computed with. Types that differ are grouped apart.
struct ParameterTypes {
  at::ScalarType storage, reduce;
  Copies copies = Copies::one;
};

struct ShardOptions {
  Strategy strategy;
  ReshardPolicy reshard_after_forward = ReshardPolicy::units;
  Summing summing = Summing::apart;
  at::Device device = at::kCPU;
  UnitPolicy units = {};                        // which units are sharded on their own; all of them
  RecomputePolicy recompute = {};               // whose activations are made again in backward; none
  std::vector<std::string> writing_units = {};  // globs: units that change their parameters in forward
  Access access = Access::read;                 // of all other units
  int64_t persistent_below = 0;                 // bytes: smaller groups stay whole on every rank
  Mesh mesh = {};                               // hsdp: replicate x shard ranks; else one row of all ranks
  std::function<ParameterTypes(const FoundParameter&)> types = {};  // empty: stored as computed with, reduced as summed
  Codec codec = Codec::identity;                                    // what gradients travel as between ranks
};

}  // namespace sherd
