// The sections "optimizer" and "loss_scale": the options of several owners, under the names of one configuration.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sherd/base/names.h"
#include "sherd/optim/loss_scaler.h"
#include "sherd/optim/muon.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/optim/precision_policy.h"
#include "sherd/optim/update_rule.h"

namespace sherd {

/// What a user calls an optimizer. Muon updates matrices, and AdamW the rest.
enum class OptimizerType { adamw, adam, sgd, adamw8bit, adam8bit, muon };
inline constexpr Name<OptimizerType> kOptimizerTypeNames[] = {
    {OptimizerType::adamw, "adamw"},         {OptimizerType::adam, "adam"},         {OptimizerType::sgd, "sgd"},
    {OptimizerType::adamw8bit, "adamw8bit"}, {OptimizerType::adam8bit, "adam8bit"}, {OptimizerType::muon, "muon"}};

/// Parameters with hyperparameters of their own. No OptimGroup: what is not set is the optimizer's, in the written
/// configuration too.
struct GroupConfig {
  std::vector<std::string> match;  // globs on parameter names; the first group that matches wins
  std::optional<double> lr, beta1, beta2, eps, weight_decay;
};

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  Hyperparameters values = {.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
  UpdateRuleOptions sgd = {.kind = UpdateRuleOptions::Kind::sgd};
  MuonOptions muon = {};
  std::vector<std::string> not_muon = default_not_muon();   // "adamw"; globs: matrices that AdamW updates all the same
  std::vector<std::string> no_decay = {"*norm*", "*bias"};  // globs on parameter names
  std::vector<std::string> fp32_moments = {};               // "exclude"; globs: not in 8 bits
  std::vector<GroupConfig> groups = {};                     // come before no_decay

  bool has_8_bits() const { return type == OptimizerType::adamw8bit || type == OptimizerType::adam8bit; }
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
