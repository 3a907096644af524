// The sections "optimizer", "precision" and "loss_scale" of the configuration.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "sherd/config/json_reader.h"
#include "sherd/optim/loss_scaler.h"

namespace sherd {

/// Parameters with hyperparameters of their own; what is not set is the optimizer's.
struct GroupConfig {
  std::vector<std::string> match;  // globs on parameter names; the first group that matches wins
  std::optional<double> lr, beta1, beta2, eps, weight_decay;
};

struct OptimizerConfig {
  std::string type = "adamw";  // adamw, adam, sgd, adamw8bit, adam8bit, muon (and adamw for what is no matrix)
  double lr = 3e-4;
  double beta1 = 0.9, beta2 = 0.95;   // adamw, adam, and with 8 bits
  double eps = 1e-8;                  // the same
  double momentum = 0.0;              // sgd; muon: 0.95 unless set
  bool nesterov = false;              // sgd; muon: true unless set
  std::string products = "auto";      // muon: or fp32, bf16; of its iterations
  std::string scale = "match_adamw";  // muon: or original; of lr, by a matrix's shape
  std::vector<std::string> adamw = {"*embed*", "*wte*", "*wpe*",
                                    "*lm_head*"};           // muon: globs: matrices that adamw updates all the same
  double weight_decay = 0.1;                                // adamw: of the parameter; adam, sgd: added to the gradient
  std::vector<std::string> no_decay = {"*norm*", "*bias"};  // globs on parameter names
  std::vector<std::string> exclude = {};                    // adamw8bit, adam8bit: globs; fp32 moments all the same
  std::vector<GroupConfig> groups = {};                     // come before no_decay

  bool has_8_bits() const { return type == "adamw8bit" || type == "adam8bit"; }
  /// What updates all parameters, or with muon those that are no matrices: adamw, adam or sgd.
  std::string rule() const { return has_8_bits() ? type.substr(0, type.size() - 4) : type == "muon" ? "adamw" : type; }
};

/// fp32, bf16 or fp16 each (compute: or auto); what is not set follows from the rest (engine/precision.h).
struct PrecisionConfig {
  std::string compute = "fp32";
  std::optional<std::string> storage, reduce;
  std::optional<std::string> master;  // fp32, split, none
  std::string norms = "fp32";         // or compute: as all other parameters
};

/// Unset: dynamic where anything is computed or reduced in fp16 ("auto").
struct LossScaleConfig {
  enum class Kind { automatic, none, dynamic, fixed };
  Kind kind = Kind::automatic;
  LossScaleOptions options = {};
};

void read_optimizer(JsonReader reader, OptimizerConfig& optimizer, const std::vector<std::string>& all_paths);
void read_precision(JsonReader reader, PrecisionConfig& precision, const std::vector<std::string>& all_paths);
/// "loss_scale": "auto", null (none), a number (fixed), or an object (dynamic).
void read_loss_scale(JsonReader& reader, LossScaleConfig& scale, const std::vector<std::string>& all_paths);

nlohmann::json to_json(const OptimizerConfig& optimizer);
nlohmann::json to_json(const PrecisionConfig& precision);
nlohmann::json to_json(const LossScaleConfig& scale);

}  // namespace sherd
