// Which types a model is computed with, stored in, and reduced in.
//
// [Note: Precision] Three types, and what a step rounds from:
//   compute   the module's parameters, and so its activations and matrix products;
//   storage   parameters between uses and on their way to other ranks, cast to the compute type unit by unit;
//   reduce    gradients on their way to the rank that sums them. Sums are made in fp32;
//   master    what updates of 16-bit parameters are rounded from (optim/update_rule.h, [Note: Masters]).
// Norms and parameters whose names match `fp32_names` keep fp32 in all. Optimizer state is fp32 or 8 bits, whatever the
// model is.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sherd/optim/precision_policy.h"
#include "sherd/optim/update_rule.h"

namespace sherd {

struct Precision {
  at::ScalarType compute = at::kFloat, storage = at::kFloat, reduce = at::kFloat;
  Master master = Master::fp32;
  std::vector<std::string> fp32_names = {};  // globs
  Norms norms = Norms::compute;

  /// Whether any parameter is of 16 bits in some place.
  bool is_mixed() const { return compute != at::kFloat || storage != at::kFloat || reduce != at::kFloat; }
  /// Whether anything is computed or reduced in fp16, of which a loss scale takes care.
  Fp16 fp16() const { return compute == at::kHalf || reduce == at::kHalf ? Fp16::present : Fp16::absent; }
  /// Whether a parameter of this name keeps fp32 in all.
  bool keeps_fp32(std::string_view fqn) const;
};

/// Whether a module is a norm by its class or its own name: either contains "norm", in any case. It has no modules in
/// it, and none of its parameters has more than one dimension.
bool named_as_norm(std::string_view module, std::string_view class_name);
/// The names of the parameters of a model's norms.
std::vector<std::string> norm_parameters(const torch::nn::Module& model);

/// fp32, bf16 or fp16 by name. Throws ConfigError that names the key.
at::ScalarType precision_type(std::string_view key, std::string_view name);

/// Decides what is open. Throws ConfigError for what does not go together.
Precision resolve(const PrecisionPolicy& policy, at::Device device);
/// What is worth saying once: where `auto` did not choose the storage type, or what was asked for will be slow.
std::optional<std::string> note_on(const PrecisionPolicy& policy, const Precision& precision, at::Device device);

}  // namespace sherd
