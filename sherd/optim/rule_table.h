// The update rules that there are, each registered once: names, options with ranges, states, and what makes it. The
// configuration, the Python classes, their documentation and docs/config.md follow from this table; a new rule is one
// more entry of it, and the class that it makes.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sherd/optim/update_rule.h"

namespace sherd {

/// An option of a rule, as users name it.
struct RuleOption {
  enum class Type { number, flag, betas };
  std::string_view name;
  Type type = Type::number;
  double standard = 0;  // torch's default, or the paper's; of a flag 0 or 1; of betas the first
  double second = 0;    // betas: the second
  double least = 0;
  std::optional<double> below = {};  // values stay below it
  std::string_view meaning = {};     // one sentence

  /// "0 or more": what values have to be.
  std::string expected() const;
  /// Throws ConfigError("[optim] got <name>=...") for values that are not.
  void check(std::span<const double> values) const;
};

struct RuleEntry {
  UpdateRuleOptions::Kind kind = UpdateRuleOptions::Kind::adamw;
  std::string_view name;        // in a configuration
  std::string_view class_name;  // in Python
  std::string_view meaning;     // one sentence, with its source
  std::vector<RuleOption> options;
  enum class Moments { fp32, fp32_or_eight_bits };
  Moments moments = Moments::fp32;  // eight bits: as "<name>8bit" too
  enum class Steps { alike, counted };
  Steps steps = Steps::alike;  // counted: an update depends on how many came before it
  std::unique_ptr<UpdateRule> (*make)(const UpdateRuleOptions&) = nullptr;

  bool takes(std::string_view option) const;
};

std::span<const RuleEntry> update_rules();
const RuleEntry& rule_entry(UpdateRuleOptions::Kind kind);

}  // namespace sherd
