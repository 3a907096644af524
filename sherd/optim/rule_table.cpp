#include "sherd/optim/rule_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "sherd/base/error.h"
#include "sherd/base/names.h"
#include "sherd/optim/adam.h"
#include "sherd/optim/lion.h"
#include "sherd/optim/sgd.h"

namespace sherd {
namespace {

using Kind = UpdateRuleOptions::Kind;
using Type = RuleOption::Type;

RuleOption lr(double standard) { return {.name = "lr", .standard = standard, .meaning = "The learning rate."}; }
RuleOption betas(double first, double second) {
  return {.name = "betas",
          .type = Type::betas,
          .standard = first,
          .second = second,
          .below = 1.0,
          .meaning = "How much of the moments a step keeps."};
}
RuleOption eps() {
  return {.name = "eps", .standard = 1e-8, .meaning = "What is added to the root that moves are divided by."};
}
RuleOption weight_decay(double standard, std::string_view meaning) {
  return {.name = "weight_decay", .standard = standard, .meaning = meaning};
}

constexpr std::string_view kOfParameters = "Times lr, what parameters lose in a step.";
constexpr std::string_view kAddedToGradients = "Times the parameter, added to its gradient.";

std::vector<RuleEntry> make_table() {
  return {
      {.kind = Kind::adamw,
       .name = "adamw",
       .class_name = "AdamW",
       .meaning = "torch.optim.AdamW: Loshchilov and Hutter, \"Decoupled weight decay regularization\", 2019.",
       .options = {lr(1e-3), betas(0.9, 0.999), eps(), weight_decay(1e-2, kOfParameters)},
       .moments = RuleEntry::Moments::fp32_or_eight_bits,
       .steps = RuleEntry::Steps::counted,
       .make = [](const UpdateRuleOptions&) -> std::unique_ptr<UpdateRule> {
         return std::make_unique<AdamRule>(AdamRule::Decay::decoupled);
       }},
      {.kind = Kind::adam,
       .name = "adam",
       .class_name = "Adam",
       .meaning = "torch.optim.Adam: Kingma and Ba, \"Adam: A method for stochastic optimization\", 2015.",
       .options = {lr(1e-3), betas(0.9, 0.999), eps(), weight_decay(0.0, kAddedToGradients)},
       .moments = RuleEntry::Moments::fp32_or_eight_bits,
       .steps = RuleEntry::Steps::counted,
       .make = [](const UpdateRuleOptions&) -> std::unique_ptr<UpdateRule> {
         return std::make_unique<AdamRule>(AdamRule::Decay::l2);
       }},
      {.kind = Kind::sgd,
       .name = "sgd",
       .class_name = "SGD",
       .meaning = "torch.optim.SGD with momentum and Nesterov's variant of it.",
       .options = {lr(1e-3),
                   {.name = "momentum", .below = 1.0, .meaning = "How much of the momentum a step keeps; 0: none."},
                   weight_decay(0.0, kAddedToGradients),
                   {.name = "nesterov", .type = Type::flag, .meaning = "Looks a step of the momentum ahead."}},
       .make = [](const UpdateRuleOptions& options) -> std::unique_ptr<UpdateRule> {
         return std::make_unique<SgdRule>(options.momentum, options.nesterov);
       }},
      {.kind = Kind::lion,
       .name = "lion",
       .class_name = "Lion",
       .meaning = "Moves by the sign of a momentum: Chen et al., \"Symbolic discovery of optimization algorithms\", "
                  "2023.",
       .options = {lr(1e-4), betas(0.9, 0.99), weight_decay(0.0, kOfParameters)},
       .moments = RuleEntry::Moments::fp32_or_eight_bits,
       .make = [](const UpdateRuleOptions&) -> std::unique_ptr<UpdateRule> { return std::make_unique<LionRule>(); }},
  };
}

}  // namespace

std::string RuleOption::expected() const {
  switch (type) {
    case Type::number:
      return below ? fmt::format("a number from {} to below {}", least, *below) : fmt::format("{} or more", least);
    case Type::flag:
      return "true or false";
    case Type::betas:
      return "two numbers from 0 to below 1";
  }
  SHERD_CHECK(false);
}

void RuleOption::check(std::span<const double> values) const {
  const auto fine = [this](double value) { return value >= least && (!below || value < *below); };
  const bool count_fits = values.size() == (type == Type::betas ? 2 : 1);
  if (count_fits && std::all_of(values.begin(), values.end(), fine)) return;
  if (type == Type::betas)
    config_error("optim", "got {}=({}), expected {}; try ({}, {})", name, fmt::join(values, ", "), expected(), standard,
                 second);
  config_error("optim", "got {}={}, expected {}; try {}", name, fmt::join(values, ", "), expected(), standard);
}

bool RuleEntry::takes(std::string_view option) const {
  return std::any_of(options.begin(), options.end(), [&](const RuleOption& own) { return own.name == option; });
}

std::span<const RuleEntry> update_rules() {
  static const std::vector<RuleEntry> table = make_table();
  return table;
}

const RuleEntry& rule_entry(Kind kind) {
  const auto rules = update_rules();
  const auto found = std::find_if(rules.begin(), rules.end(), [&](const auto& entry) { return entry.kind == kind; });
  SHERD_CHECK(found != rules.end());
  return *found;
}

std::string_view name_of(Kind kind) { return rule_entry(kind).name; }

Kind update_kind(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& entry : update_rules()) {
    if (entry.name == name) return entry.kind;
    names.emplace_back(entry.name);
  }
  config_error("optimizer.type", "got '{}', expected {}; try adamw", name, alternatives(names));
}

void UpdateRuleOptions::validate() const {
  const RuleEntry& entry = rule_entry(kind);
  if (!(momentum >= 0.0 && momentum < 1.0))
    config_error("optimizer.momentum", "got {}, expected 0 <= momentum < 1; try 0.9", momentum);
  if (momentum > 0 && !entry.takes("momentum"))
    config_error("optimizer.momentum", "got {} without sgd, expected it with sgd only; try betas", momentum);
  if (nesterov == Nesterov::yes && momentum == 0)
    config_error("optimizer.nesterov",
                 "got true without momentum, expected it with sgd and momentum; try momentum 0.9");
}

std::unique_ptr<UpdateRule> make_update_rule(const UpdateRuleOptions& options) {
  options.validate();
  return rule_entry(options.kind).make(options);
}

}  // namespace sherd
