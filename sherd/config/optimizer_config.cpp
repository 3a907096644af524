#include "sherd/config/optimizer_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using nlohmann::json;

constexpr NumberRange kAboveZero{.min = 0, .low = Bound::open};
constexpr NumberRange kNotNegative{.min = 0};
constexpr NumberRange kUpToOne{.min = 0, .max = 1, .high = Bound::open};

/// Throws for a key of another optimizer; null takes it back.
void refuse_keys(JsonReader& reader, const std::string& type, std::initializer_list<const char*> keys,
                 std::string_view owners) {
  for (const char* key : keys) {
    if (reader.find(key) == nullptr || reader.is_null(key)) continue;
    config_error("config", "got '{}' with optimizer.type \"{}\", expected it with {} only; try {} null",
                 reader.path(key), type, owners, reader.path(key));
  }
}

template <class Number>
void read_betas(JsonReader& reader, Number& beta1, Number& beta2) {
  const json* betas = reader.find("betas");
  if (betas == nullptr) return;
  if (!betas->is_array() || betas->size() != 2)
    config_error("config", "got {} for '{}', expected an array of two numbers; try [0.9, 0.95]", describe(*betas),
                 reader.path("betas"));
  beta1 = to_number((*betas)[0], reader.path("betas[0]"), kUpToOne, 0.9);
  beta2 = to_number((*betas)[1], reader.path("betas[1]"), kUpToOne, 0.95);
}

void read_number(JsonReader& reader, const char* key, std::optional<double>& target, NumberRange range, double fix) {
  if (const json* value = reader.find(key)) target = to_number(*value, reader.path(key), range, fix);
}

GroupConfig read_group(JsonReader reader, const OptimizerConfig& optimizer) {
  GroupConfig group;
  reader.strings("match", group.match);
  if (group.match.empty())
    config_error("config", "got no '{}', expected globs on parameter names; try [\"*embed*\"]", reader.path("match"));
  read_number(reader, "lr", group.lr, kNotNegative, optimizer.lr);
  read_number(reader, "weight_decay", group.weight_decay, kNotNegative, optimizer.weight_decay);
  if (optimizer.type == "sgd") {
    refuse_keys(reader, optimizer.type, {"betas", "eps"}, "adamw and adam");
  } else {
    read_betas(reader, group.beta1, group.beta2);
    read_number(reader, "eps", group.eps, kAboveZero, optimizer.eps);
  }
  reader.finish();
  return group;
}

void read_groups(JsonReader& reader, OptimizerConfig& optimizer) {
  const json* groups = reader.find("groups");
  if (groups == nullptr) return;
  if (!groups->is_array())
    config_error("config",
                 "got {} for '{}', expected an array of objects; try [{{\"match\": [\"*embed*\"], \"lr\": 1e-4}}]",
                 describe(*groups), reader.path("groups"));
  optimizer.groups.clear();
  for (size_t i = 0; i < groups->size(); ++i)
    optimizer.groups.push_back(
        read_group(JsonReader((*groups)[i], fmt::format("{}[{}]", reader.path("groups"), i)), optimizer));
}

json group_to_json(const GroupConfig& group) {
  json out = {{"match", group.match}};
  if (group.lr) out["lr"] = *group.lr;
  if (group.beta1) out["betas"] = {*group.beta1, *group.beta2};
  if (group.eps) out["eps"] = *group.eps;
  if (group.weight_decay) out["weight_decay"] = *group.weight_decay;
  return out;
}

void read_name(JsonReader& reader, const char* key, std::optional<std::string>& target,
               const std::vector<std::string>& choices) {
  std::string name;
  if (!reader.is_null(key) && reader.choice(key, name, choices)) target = name;
}

}  // namespace

void read_optimizer(JsonReader reader, OptimizerConfig& optimizer, const std::vector<std::string>& all_paths) {
  reader.choice("type", optimizer.type, {"adamw", "adam", "sgd", "adamw8bit", "adam8bit", "muon"});
  const bool muon = optimizer.type == "muon";
  if (muon) {
    optimizer.momentum = 0.95;
    optimizer.nesterov = true;
    reader.choice("scale", optimizer.scale, {"match_adamw", "original"});
    reader.choice("products", optimizer.products, {"auto", "fp32", "bf16"});
    reader.strings("adamw", optimizer.adamw);
  } else {
    refuse_keys(reader, optimizer.type, {"scale", "products", "adamw"}, "muon");
  }
  reader.number("lr", optimizer.lr, kNotNegative);
  if (optimizer.type == "sgd" || muon) {
    reader.number("momentum", optimizer.momentum, kUpToOne);
    reader.boolean("nesterov", optimizer.nesterov);
  } else {
    refuse_keys(reader, optimizer.type, {"momentum", "nesterov"}, "sgd and muon");
  }
  if (optimizer.type == "sgd") {
    refuse_keys(reader, optimizer.type, {"betas", "eps"}, "adamw and adam");
  } else {
    read_betas(reader, optimizer.beta1, optimizer.beta2);
    reader.number("eps", optimizer.eps, kAboveZero);
  }
  if (optimizer.has_8_bits()) {
    reader.strings("exclude", optimizer.exclude);
  } else {
    refuse_keys(reader, optimizer.type, {"exclude"}, "adamw8bit and adam8bit");
  }
  reader.number("weight_decay", optimizer.weight_decay, kNotNegative);
  reader.strings("no_decay", optimizer.no_decay);
  read_groups(reader, optimizer);
  reader.finish(all_paths);
  if (optimizer.nesterov && optimizer.momentum == 0 && !muon)
    config_error(
        "config",
        "got true for 'optimizer.nesterov' without momentum, expected a positive 'optimizer.momentum'; try 0.9");
}

void read_precision(JsonReader reader, PrecisionConfig& precision, const std::vector<std::string>& all_paths) {
  reader.choice("compute", precision.compute, {"fp32", "bf16", "fp16", "auto"});
  read_name(reader, "storage", precision.storage, {"fp32", "bf16", "fp16"});
  read_name(reader, "reduce", precision.reduce, {"fp32", "bf16", "fp16"});
  read_name(reader, "master", precision.master, {"fp32", "split", "none"});
  reader.choice("norms", precision.norms, {"fp32", "compute"});
  reader.finish(all_paths);
}

void read_loss_scale(JsonReader& reader, LossScaleConfig& scale, const std::vector<std::string>& all_paths) {
  using Kind = LossScaleConfig::Kind;
  if (reader.is_null("loss_scale")) {
    scale.kind = Kind::none;
    return;
  }
  const json* value = reader.find("loss_scale");
  if (value == nullptr || *value == "auto") return;
  if (value->is_number()) {
    scale.kind = Kind::fixed;
    scale.options.kind = ScaleKind::fixed;
    scale.options.initial = to_number(*value, reader.path("loss_scale"), kAboveZero, 65536);
    scale.options.minimum = std::min(scale.options.minimum, scale.options.initial);
  } else if (value->is_object()) {
    scale.kind = Kind::dynamic;
    auto below = reader.object("loss_scale");
    below->number("initial", scale.options.initial, kAboveZero);
    below->integer("window", scale.options.window, {});
    below->integer("hysteresis", scale.options.hysteresis, {});
    bool consecutive = false;
    below->boolean("consecutive_hysteresis", consecutive);
    scale.options.refill = consecutive ? RefillHysteresis::at_every_step : RefillHysteresis::at_growth;
    below->number("minimum", scale.options.minimum, {.min = 0, .max = scale.options.initial, .low = Bound::open});
    below->finish(all_paths);
  } else {
    config_error("config", "got {} for '{}', expected \"auto\", null, a number or an object; try \"auto\"",
                 describe(*value), reader.path("loss_scale"));
  }
}

json to_json(const OptimizerConfig& optimizer) {
  json out = {{"type", optimizer.type},
              {"lr", optimizer.lr},
              {"weight_decay", optimizer.weight_decay},
              {"no_decay", optimizer.no_decay}};
  const bool muon = optimizer.type == "muon";
  if (optimizer.type == "sgd" || muon) {
    out["momentum"] = optimizer.momentum;
    out["nesterov"] = optimizer.nesterov;
  }
  if (muon) {
    out["scale"] = optimizer.scale;
    out["products"] = optimizer.products;
    out["adamw"] = optimizer.adamw;
  }
  if (optimizer.type != "sgd") {
    out["betas"] = {optimizer.beta1, optimizer.beta2};
    out["eps"] = optimizer.eps;
  }
  if (optimizer.has_8_bits()) out["exclude"] = optimizer.exclude;
  out["groups"] = json::array();
  for (const auto& group : optimizer.groups) out["groups"].push_back(group_to_json(group));
  return out;
}

json to_json(const PrecisionConfig& precision) {
  const auto or_null = [](const std::optional<std::string>& name) { return name ? json(*name) : json(nullptr); };
  return {{"compute", precision.compute},
          {"storage", or_null(precision.storage)},
          {"reduce", or_null(precision.reduce)},
          {"master", or_null(precision.master)},
          {"norms", precision.norms}};
}

json to_json(const LossScaleConfig& scale) {
  using Kind = LossScaleConfig::Kind;
  const LossScaleOptions& options = scale.options;
  if (scale.kind == Kind::automatic) return "auto";
  if (scale.kind == Kind::none) return nullptr;
  if (scale.kind == Kind::fixed) return options.initial;
  return {{"initial", options.initial},
          {"window", options.window},
          {"hysteresis", options.hysteresis},
          {"consecutive_hysteresis", options.refill == RefillHysteresis::at_every_step},
          {"minimum", options.minimum}};
}

}  // namespace sherd
