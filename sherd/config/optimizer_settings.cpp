#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "sherd/config/settings.h"

namespace sherd {
namespace {

using O = OptimizerConfig;
using G = GroupConfig;
using H = Hyperparameters;
using Types = std::vector<OptimizerType>;
using nlohmann::json;

const Types kMomentum = {OptimizerType::sgd, OptimizerType::muon};
const Types kMoments = {OptimizerType::muon, OptimizerType::adamw8bit, OptimizerType::adam8bit, OptimizerType::adamw,
                        OptimizerType::adam};
const Types kEightBits = {OptimizerType::adamw8bit, OptimizerType::adam8bit};
const Types kMuon = {OptimizerType::muon};

bool is_of(const Types& types, OptimizerType type) {
  return std::find(types.begin(), types.end(), type) != types.end();
}

std::string names_of(const Types& types) {
  std::vector<std::string> names;
  for (const OptimizerType type : types) names.emplace_back(text_of(kOptimizerTypeNames, type));
  return alternatives(names, "and");
}

/// The default, or where types differ: "0.0 (sgd), 0.95 (muon)".
std::string preset_of(const Types& types, const Setting<O>& setting) {
  std::set<std::string> presets;
  std::string all;
  for (const OptimizerType type : types) {
    const std::string preset = setting.written_by(O{.type = type});
    presets.insert(preset);
    all += fmt::format("{}{} ({})", all.empty() ? "" : ", ", preset, text_of(kOptimizerTypeNames, type));
  }
  return presets.size() == 1 ? *presets.begin() : all;
}

/// Throws for a setting of other types; null takes it back.
void refuse_other_type(JsonReader& reader, const std::string& key, OptimizerType type, const std::string& types) {
  if (reader.find(key) == nullptr || reader.is_null(key)) return;
  config_error("config", "got '{}' with optimizer.type \"{}\", expected it with {} only; try {} null", reader.path(key),
               text_of(kOptimizerTypeNames, type), types, reader.path(key));
}

/// A setting of these types of optimizer.
Setting<O> only(const Types& types, Setting<O> setting) {
  setting.info.only = names_of(types);
  setting.info.preset = preset_of(types, setting);
  setting.read = [=, info = setting.info, read = setting.read](JsonReader& reader, const Reading& reading, O& o) {
    if (is_of(types, o.type))
      read(reader, reading, o);
    else
      refuse_other_type(reader, info.key, o.type, info.only);
  };
  setting.write = [=, write = setting.write](const O& o, Caller caller, json& out) {
    if (is_of(types, o.type)) write(o, caller, out);
  };
  return setting;
}

std::vector<Setting<G>> group_settings(const O& optimizer) {
  const H& own = optimizer.values;
  std::vector<Setting<G>> settings = {
      {"match", &G::match, texts("globs on parameter names"), "Which parameters; the first group that matches counts."},
      {"lr", &G::lr, numbers(kNotNegative).suggesting({own.lr}), "Learning rate."},
      {"weight_decay", &G::weight_decay, numbers(kNotNegative).suggesting({own.weight_decay}), "Decay of weights."},
      {"betas", &G::beta1, &G::beta2, pair_of(kShare).suggesting({own.beta1, own.beta2}), "Decay of both moments."},
      {"eps", &G::eps, numbers(kPositive).suggesting({own.eps}), "Added to the root of the second moment."},
  };
  settings.front().info.preset = "";  // there is none without it
  for (Setting<G>& setting : settings) {
    if (setting.info.key != "betas" && setting.info.key != "eps") continue;
    setting.info.only = names_of(kMoments);
    if (!is_of(kMoments, optimizer.type))
      setting.read = [info = setting.info, type = optimizer.type](JsonReader& reader, const Reading&, G&) {
        refuse_other_type(reader, info.key, type, info.only);
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

std::vector<Setting<O>> optimizer_settings() {
  const auto momentum = [](auto& o) -> auto& {
    return o.type == OptimizerType::muon ? o.muon.momentum : o.sgd.momentum;
  };
  const auto nesterov = [](auto& o) -> auto& {
    return o.type == OptimizerType::muon ? o.muon.nesterov : o.sgd.nesterov;
  };
  // The type comes first: it says which others there are.
  return {
      {"type", &O::type, kOptimizerTypeNames,
       "What updates the parameters. With muon: matrices by Muon, and all else by AdamW."},
      {"lr", in(&O::values, &H::lr), numbers(kNotNegative), "Learning rate."},
      {"weight_decay", in(&O::values, &H::weight_decay), numbers(kNotNegative),
       "Decay of weights: of the parameter itself; with adam, adam8bit and sgd added to its gradient."},
      {"no_decay", &O::no_decay, texts("globs on parameter names"), "Parameters without weight decay."},
      only(kMoments, {"betas", in(&O::values, &H::beta1), in(&O::values, &H::beta2), pair_of(kShare),
                      "Decay of the first and the second moment."}),
      only(kMoments, {"eps", in(&O::values, &H::eps), numbers(kPositive), "Added to the root of the second moment."}),
      only(kEightBits, {"exclude", &O::fp32_moments, texts("globs on parameter names"),
                        "Parameters whose moments are fp32 all the same."}),
      only(kMomentum, {"momentum", momentum, numbers(kShare), "Decay of the momentum."}),
      only(kMomentum, {"nesterov", nesterov, boolean(), "Whether the momentum is Nesterov's."}),
      only(kMuon, {"scale", in(&O::muon, &MuonOptions::scale), kMuonScaleNames,
                   "What the learning rate is multiplied with by a matrix's shape: moves of AdamW's size, or Muon's."}),
      only(kMuon, {"products", in(&O::muon, &MuonOptions::products), kMuonProductNames,
                   "The type of Muon's matrix products; auto: bf16 where the device multiplies it by itself."}),
      only(kMuon,
           {"adamw", &O::not_muon, texts("globs on parameter names"), "Matrices that AdamW updates all the same."}),
      {{"groups", object_of(group_settings({}), Values::Kind::objects),
        "Parameters with values of their own, before no_decay; what is unset is the optimizer's."},
       read_groups,
       write_groups},
  };
}

void check_optimizer(JsonReader&, O& optimizer) {
  if (optimizer.type == OptimizerType::sgd && optimizer.sgd.nesterov == Nesterov::yes && optimizer.sgd.momentum == 0)
    config_error(
        "config",
        "got true for 'optimizer.nesterov' without momentum, expected a positive 'optimizer.momentum'; try 0.9");
}

}  // namespace

Setting<TrainConfig> optimizer_section() {
  return section<TrainConfig>("optimizer", &TrainConfig::optimizer, optimizer_settings(),
                              "What updates the parameters.", check_optimizer);
}

UpdateRuleOptions OptimizerConfig::rule() const {
  using Kind = UpdateRuleOptions::Kind;
  switch (type) {
    case OptimizerType::sgd:
      return sgd;
    case OptimizerType::adam:
    case OptimizerType::adam8bit:
      return {.kind = Kind::adam};
    case OptimizerType::adamw:
    case OptimizerType::adamw8bit:
    case OptimizerType::muon:
      return {.kind = Kind::adamw};
  }
  SHERD_CHECK(false);
}

}  // namespace sherd
