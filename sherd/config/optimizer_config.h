// The sections "optimizer" and "loss_scale": the options of several owners, under the names of one configuration.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sherd/optim/loss_scaler.h"
#include "sherd/optim/muon.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/optim/precision_policy.h"
#include "sherd/optim/update_rule.h"

namespace sherd {

/// What is behind the name of an optimizer: a registered rule with moments of a type, or Muon, which leaves to the rule
/// what is no matrix.
struct OptimizerType {
  enum class Matrices { by_rule, by_muon };
  UpdateRuleOptions::Kind rule = UpdateRuleOptions::Kind::adamw;
  MomentType moments = MomentType::fp32;
  Matrices matrices = Matrices::by_rule;

  bool has_8_bits() const { return moments == MomentType::eight_bits; }
  bool has_muon() const { return matrices == Matrices::by_muon; }
  friend bool operator==(const OptimizerType&, const OptimizerType&) = default;
};

struct NamedOptimizer {
  std::string name;  // adamw, adamw8bit, muon
  OptimizerType type;
};

/// All that there are: the registered rules (optim/rule_table), those with 8-bit moments, muon.
const std::vector<NamedOptimizer>& optimizer_types();
const std::string& name_of(const OptimizerType& type);

/// Parameters with hyperparameters of their own. No OptimGroup: what is not set is the optimizer's, in the written
/// configuration too.
struct GroupConfig {
  std::vector<std::string> match;  // globs on parameter names; the first group that matches wins
  std::optional<double> lr, beta1, beta2, eps, weight_decay;
};

struct OptimizerConfig {
  OptimizerType type = {};
  Hyperparameters values = {.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
  UpdateRuleOptions update = {};  // but for its kind, which is the type's; see rule()
  MuonOptions muon = {};
  std::vector<std::string> not_muon = default_not_muon();   // "adamw"; globs: matrices that AdamW updates all the same
  std::vector<std::string> no_decay = {"*norm*", "*bias"};  // globs on parameter names
  std::vector<std::string> fp32_moments = {};               // "exclude"; globs: not in 8 bits
  std::vector<GroupConfig> groups = {};                     // come before no_decay

  /// With the defaults of a type.
  static OptimizerConfig of(const OptimizerType& type);
  bool has_8_bits() const { return type.has_8_bits(); }
  /// What updates all parameters, or with Muon those that are no matrices.
  UpdateRuleOptions rule() const;
};

/// Whether the loss is scaled. Automatic is no value of LossScaleOptions, because it depends on the types that the
/// model gets: dynamic scaling where anything is computed or reduced in fp16.
struct LossScaleConfig {
  enum class Use { automatic, never, always };
  Use use = Use::automatic;
  LossScaleOptions options = {};

  /// Null: none.
  std::optional<LossScaleOptions> resolve(Fp16 fp16) const;
};

}  // namespace sherd
