// Finds the units of a model and the parameters that belong to each.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <optional>
#include <string>
#include <vector>

#include "sherd/shard/unit.h"
#include "sherd/shard/unit_policy.h"

namespace sherd {

struct FoundParameter {
  std::string fqn;  // its first name in the module tree; a tied parameter has others, which share its tensor
  at::Tensor tensor;
};

struct FoundUnit {
  std::string name;          // in the module tree; "" for the root
  UnitBase* unit = nullptr;  // null for the root, which need not be a unit
  size_t parent = 0;         // index of the enclosing unit, which comes before it; the root is its own
  int children = 0;
  std::vector<FoundParameter> parameters;
  std::optional<AfterForward> after_forward = {};  // instead of what ShardOptions say
};

/// The units of `root` that `policy` chooses (all, where it is empty) in the order of the module tree, the root first.
/// A parameter belongs to the innermost of them around it, a tied one to the lowest that contains all its uses. Throws
/// ConfigError for a parameter that cannot be sharded (not fp32, bf16 or fp16; not contiguous), and for a policy that
/// chooses none of several units.
std::vector<FoundUnit> discover_units(torch::nn::Module& root, const UnitPolicy& policy = {});

/// All names of all parameters with the name each is stored under: {"lm_head.weight" -> "model.embed_tokens.weight"}.
std::vector<std::pair<std::string, std::string>> parameter_aliases(torch::nn::Module& root);

}  // namespace sherd
