#include "sherd/config/optimizer_config.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "sherd/config/settings.h"
#include "sherd/optim/rule_table.h"

namespace sherd {
namespace {

using O = OptimizerConfig;
using G = GroupConfig;
using H = Hyperparameters;
using nlohmann::json;

/// Which types a setting belongs to.
using Belongs = std::function<bool(const OptimizerType&)>;

Belongs takes(std::string_view option) {
  return [=](const OptimizerType& type) { return rule_entry(type.rule).takes(option); };
}
bool has_momentum(const OptimizerType& type) { return type.has_muon() || takes("momentum")(type); }

/// An option as the rules have it registered.
const RuleOption& registered(std::string_view name) {
  for (const RuleEntry& entry : update_rules())
    for (const RuleOption& option : entry.options)
      if (option.name == name) return option;
  SHERD_CHECK(false);
}
NumberRange range_of(const RuleOption& option) {
  if (!option.below) return {.min = option.least};
  return {.min = option.least, .max = *option.below, .high = Bound::open};
}
std::string meaning_of(std::string_view name) { return std::string(registered(name).meaning); }

/// The types that a setting belongs to, the best known ones at the end of the sentence.
std::string names_of(const Belongs& belongs) {
  const auto weight = [](const OptimizerType& type) {
    using Kind = UpdateRuleOptions::Kind;
    if (type.rule != Kind::adamw && type.rule != Kind::adam) return 0;
    return type.has_8_bits() || type.has_muon() ? 1 : 2;
  };
  std::vector<std::string> names;
  for (int now = 0; now <= 2; ++now)
    for (const auto& [name, type] : optimizer_types())
      if (belongs(type) && weight(type) == now) names.push_back(name);
  return alternatives(names, "and");
}

/// The default, or where types differ: "0.0 (sgd), 0.95 (muon)".
std::string preset_of(const Belongs& belongs, const Setting<O>& setting) {
  std::map<std::string, std::string> types;  // by preset
  std::vector<std::string> presets;
  for (const auto& [name, type] : optimizer_types()) {
    if (!belongs(type)) continue;
    const std::string preset = setting.written_by(O::of(type));
    std::string& names = types[preset];
    if (names.empty()) presets.push_back(preset);
    names += (names.empty() ? "" : ", ") + name;
  }
  std::string all;
  for (const std::string& preset : presets)
    all += fmt::format("{}{} ({})", all.empty() ? "" : ", ", preset, types[preset]);
  return presets.size() == 1 ? presets.front() : all;
}

/// Throws for a setting of other types; null takes it back.
void refuse_other_type(JsonReader& reader, const SettingInfo& info, const OptimizerType& type) {
  if (reader.find(info.key) == nullptr || reader.is_null(info.key)) return;
  const std::string path = reader.path(info.key);
  config_error("config", "got '{}' with optimizer.type \"{}\", expected it with {} only; try {} null", path,
               name_of(type), info.only, path);
}

/// A setting of some types of optimizers.
Setting<O> only(const Belongs& belongs, Setting<O> setting) {
  setting.info.only = names_of(belongs);
  setting.info.preset = preset_of(belongs, setting);
  setting.read = [=, info = setting.info, read = setting.read](JsonReader& reader, const Reading& reading, O& o) {
    if (belongs(o.type))
      read(reader, reading, o);
    else
      refuse_other_type(reader, info, o.type);
  };
  setting.write = [=, write = setting.write](const O& o, Caller caller, json& out) {
    if (belongs(o.type)) write(o, caller, out);
  };
  return setting;
}

/// A setting of all types, whose defaults may differ.
Setting<O> of_all(Setting<O> setting) {
  setting.info.preset = preset_of([](const OptimizerType&) { return true; }, setting);
  return setting;
}

std::vector<Setting<G>> group_settings(const O& optimizer) {
  const H& own = optimizer.values;
  std::vector<Setting<G>> settings = {
      {"match", &G::match, texts("globs on parameter names"), "Which parameters; the first group that matches counts."},
      {"lr", &G::lr, numbers(range_of(registered("lr"))).suggesting({own.lr}), meaning_of("lr")},
      {"weight_decay", &G::weight_decay, numbers(kNotNegative).suggesting({own.weight_decay}), "Decay of weights."},
      {"betas", &G::beta1, &G::beta2, pair_of(range_of(registered("betas"))).suggesting({own.beta1, own.beta2}),
       meaning_of("betas")},
      {"eps", &G::eps, numbers(kPositive).suggesting({own.eps}), meaning_of("eps")},
  };
  settings.front().info.preset = "";  // there is none without it
  for (Setting<G>& setting : settings) {
    if (setting.info.key != "betas" && setting.info.key != "eps") continue;
    const Belongs belongs = takes(setting.info.key);
    setting.info.only = names_of(belongs);
    if (!belongs(optimizer.type))
      setting.read = [info = setting.info, type = optimizer.type](JsonReader& reader, const Reading&, G&) {
        refuse_other_type(reader, info, type);
      };
  }
  return settings;
}

void read_groups(JsonReader& reader, const Reading& reading, O& optimizer) {
  const json* groups = reader.find("groups");
  if (groups == nullptr) return;
  if (!groups->is_array())
    config_error("config",
                 "got {} for '{}', expected an array of objects; try [{{\"match\": [\"*embed*\"], \"lr\": 1e-4}}]",
                 describe(*groups), reader.path("groups"));
  const std::vector<Setting<G>> settings = group_settings(optimizer);
  optimizer.groups.clear();
  for (size_t i = 0; i < groups->size(); ++i) {
    JsonReader below((*groups)[i], fmt::format("{}[{}]", reader.path("groups"), i));
    G& group = optimizer.groups.emplace_back();
    read_fields(below, reading, settings, group);
    if (group.match.empty())
      config_error("config", "got no '{}', expected globs on parameter names; try [\"*embed*\"]", below.path("match"));
  }
}

void write_groups(const O& optimizer, Caller caller, json& out) {
  json& groups = out["groups"] = json::array();
  const std::vector<Setting<G>> settings = group_settings(optimizer);
  for (const G& group : optimizer.groups) write_fields(groups.emplace_back(json::object()), caller, settings, group);
}

Setting<O> type_setting() {
  std::vector<std::string> names;
  for (const NamedOptimizer& each : optimizer_types()) names.push_back(each.name);
  return {{"type", words(names), "What updates the parameters. With muon: matrices by Muon, and all else by AdamW."},
          [=](JsonReader& reader, const Reading&, O& o) {
            o = O::of(optimizer_types()[read_word(reader, "type", names, name_of(o.type))].type);
          },
          [](const O& o, Caller, json& out) { write_word(out, "type", name_of(o.type)); }};
}

std::vector<Setting<O>> optimizer_settings() {
  const auto momentum = [](auto& o) -> auto& { return o.type.has_muon() ? o.muon.momentum : o.update.momentum; };
  const auto nesterov = [](auto& o) -> auto& { return o.type.has_muon() ? o.muon.nesterov : o.update.nesterov; };
  // The type comes first: it says which others there are, and their defaults.
  return {
      type_setting(),
      of_all({"lr", in(&O::values, &H::lr), numbers(range_of(registered("lr"))), meaning_of("lr")}),
      {"weight_decay", in(&O::values, &H::weight_decay), numbers(range_of(registered("weight_decay"))),
       "Decay of weights: times lr, what parameters lose in a step; with adam, adam8bit and sgd added to gradients."},
      {"no_decay", &O::no_decay, texts("globs on parameter names"), "Parameters without weight decay."},
      only(takes("betas"), {"betas", in(&O::values, &H::beta1), in(&O::values, &H::beta2),
                            pair_of(range_of(registered("betas"))), meaning_of("betas")}),
      only(takes("eps"), {"eps", in(&O::values, &H::eps), numbers(kPositive), meaning_of("eps")}),
      only(&OptimizerType::has_8_bits, {"exclude", &O::fp32_moments, texts("globs on parameter names"),
                                        "Parameters whose moments are fp32 all the same."}),
      only(has_momentum, {"momentum", momentum, numbers(range_of(registered("momentum"))), meaning_of("momentum")}),
      only(has_momentum, {"nesterov", nesterov, boolean(), meaning_of("nesterov")}),
      only(&OptimizerType::has_muon,
           {"scale", in(&O::muon, &MuonOptions::scale), kMuonScaleNames,
            "What the learning rate is multiplied with by a matrix's shape: moves of AdamW's size, or Muon's."}),
      only(&OptimizerType::has_muon,
           {"products", in(&O::muon, &MuonOptions::products), kMuonProductNames,
            "The type of Muon's matrix products; auto: bf16 where the device multiplies it by itself."}),
      only(&OptimizerType::has_muon,
           {"adamw", &O::not_muon, texts("globs on parameter names"), "Matrices that AdamW updates all the same."}),
      {{"groups", object_of(group_settings({}), Values::Kind::objects),
        "Parameters with values of their own, before no_decay; what is unset is the optimizer's."},
       read_groups,
       write_groups},
  };
}

void check_optimizer(JsonReader&, O& optimizer) {
  const UpdateRuleOptions rule = optimizer.rule();
  if (rule.nesterov == Nesterov::yes && rule.momentum == 0)
    config_error(
        "config",
        "got true for 'optimizer.nesterov' without momentum, expected a positive 'optimizer.momentum'; try 0.9");
}

}  // namespace

Setting<TrainConfig> optimizer_section() {
  return section<TrainConfig>("optimizer", &TrainConfig::optimizer, optimizer_settings(),
                              "What updates the parameters.", check_optimizer);
}

const std::vector<NamedOptimizer>& optimizer_types() {
  static const std::vector<NamedOptimizer> all = [] {
    std::vector<NamedOptimizer> types;
    for (const RuleEntry& entry : update_rules()) types.push_back({std::string(entry.name), {.rule = entry.kind}});
    for (const RuleEntry& entry : update_rules())
      if (entry.moments == RuleEntry::Moments::fp32_or_eight_bits)
        types.push_back({std::string(entry.name) + "8bit", {.rule = entry.kind, .moments = MomentType::eight_bits}});
    types.push_back({"muon", {.matrices = OptimizerType::Matrices::by_muon}});
    return types;
  }();
  return all;
}

const std::string& name_of(const OptimizerType& type) {
  const auto& all = optimizer_types();
  const auto found = std::find_if(all.begin(), all.end(), [&](const auto& each) { return each.type == type; });
  SHERD_CHECK(found != all.end());
  return found->name;
}

OptimizerConfig OptimizerConfig::of(const OptimizerType& type) {
  OptimizerConfig config{.type = type};
  // A move of Lion's is as large as AdamW's largest ones: the defaults are the rule's own.
  if (type.rule == UpdateRuleOptions::Kind::lion) {
    for (const RuleOption& option : rule_entry(type.rule).options) {
      if (option.name == "lr") config.values.lr = option.standard;
      if (option.name == "betas")
        std::tie(config.values.beta1, config.values.beta2) = std::pair(option.standard, option.second);
    }
  }
  return config;
}

UpdateRuleOptions OptimizerConfig::rule() const {
  UpdateRuleOptions options = rule_entry(type.rule).takes("momentum") ? update : UpdateRuleOptions{};
  options.kind = type.rule;
  return options;
}

}  // namespace sherd
