#include <algorithm>
#include <nlohmann/json.hpp>

#include "sherd/config/settings.h"

namespace sherd {
namespace {

using T = TrainConfig;
using P = PrecisionPolicy;
using L = LossScaleOptions;
using nlohmann::json;

std::vector<std::string> types_and(std::vector<std::string> more) {
  std::vector<std::string> all = texts_of(kPrecisionTypeNames);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<std::string> masters() {
  std::vector<std::string> names;
  for (const Master master : {Master::fp32, Master::split, Master::stochastic})
    names.emplace_back(text_of(kMasterNames, master));
  return names;
}

std::vector<Setting<T>> precision_settings() {
  return {
      {"compute", in(&T::precision, &P::compute), words(types_and({"auto"})),
       "What is computed with; auto: the storage type where this machine multiplies it by itself."},
      {"storage", in(&T::precision, &P::storage), words(types_and({})).or_null(),
       "What parameters are between uses; null: the compute type, and with auto bf16."},
      {"reduce", in(&T::precision, &P::reduce), words(types_and({})).or_null(),
       "What gradients are on their way to the rank that sums them, in fp32; null: fp32."},
      {"master", in(&T::precision, &P::master), words(masters()).or_null(),
       "What updates of 16-bit parameters are rounded from; null: split for bf16, fp32 for fp16."},
      {"norms", in(&T::precision, &P::norms), kNormsNames,
       "The types of norms: fp32 in all, or those of all other parameters."},
      only_for(Caller::program,
               Setting<T>("output", in(&T::program, &ProgramOptions::output), words(types_and({})).or_null(),
                          "What the model's outputs are cast to; null: nothing.")),
      only_for(Caller::program, Setting<T>("cast_inputs", in(&T::program, &ProgramOptions::cast_inputs), boolean(),
                                           "Whether inputs are cast to the compute type.")),
  };
}

std::vector<Setting<L>> loss_scale_settings() {
  return {
      {"initial", &L::initial, numbers(kPositive), "The first scale."},
      {"window", &L::window, integers(), "Steps without an overflow after which the scale is doubled."},
      {"hysteresis", &L::hysteresis, integers(), "Overflows after which it is halved."},
      {"consecutive_hysteresis", &L::refill, boolean(),
       "Whether every clean step gives back the overflows that may be overlooked; else growth does."},
      {"minimum", &L::minimum, numbers(kPositive), "The smallest scale."},
  };
}

void read_loss_scale(JsonReader& reader, const Reading& reading, T& config) {
  LossScaleConfig& scale = config.loss_scale;
  const json* value = reader.find("loss_scale");
  if (value == nullptr || *value == "auto") return;
  scale.use = value->is_null() ? LossScaleConfig::Use::never : LossScaleConfig::Use::always;
  if (value->is_null()) return;
  L& options = scale.options;
  if (value->is_number()) {
    options.kind = ScaleKind::fixed;
    options.initial = to_number(*value, reader.path("loss_scale"), kPositive, options.initial);
    options.minimum = std::min(options.minimum, options.initial);
  } else if (value->is_object()) {
    auto below = reader.object("loss_scale");
    read_fields(*below, reading, loss_scale_settings(), options);
    options.minimum = L{}.minimum;
    below->number("minimum", options.minimum, {.min = 0, .max = options.initial, .low = Bound::open});
  } else {
    config_error("config", "got {} for '{}', expected \"auto\", null, a number or an object; try \"auto\"",
                 describe(*value), reader.path("loss_scale"));
  }
}

void write_loss_scale(const T& config, Caller caller, json& out) {
  const LossScaleConfig& scale = config.loss_scale;
  json& value = out["loss_scale"];
  if (scale.use == LossScaleConfig::Use::never) return;
  if (scale.use == LossScaleConfig::Use::automatic)
    value = "auto";
  else if (scale.options.kind == ScaleKind::fixed)
    value = scale.options.initial;
  else
    write_fields(value = json::object(), caller, loss_scale_settings(), scale.options);
}

}  // namespace

Setting<TrainConfig> precision_section() {
  const auto itself = [](auto& config) -> auto& { return config; };
  return section<TrainConfig>("precision", itself, precision_settings(), "Which types a model has, and where.");
}

Setting<TrainConfig> loss_scale_section() {
  Values values = object_of(loss_scale_settings());
  values.instead = "auto";
  values.null = Values::Null::value;
  values.alternatives = {numbers(kPositive)};
  return {
      {"loss_scale", std::move(values),
       "What the loss is multiplied with so that small fp16 gradients are not lost: an object is a dynamic scale, a "
       "number a fixed one, null none; auto: dynamic where anything is computed or reduced in fp16."},
      read_loss_scale,
      write_loss_scale};
}

std::optional<LossScaleOptions> LossScaleConfig::resolve(Fp16 fp16) const {
  if (use == Use::never || (use == Use::automatic && fp16 == Fp16::absent)) return std::nullopt;
  return options;
}

}  // namespace sherd
