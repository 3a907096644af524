#include "sherd/config/train_config.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "sherd/base/error.h"
#include "sherd/config/check_config.h"
#include "sherd/config/json_file.h"
#include "sherd/config/json_reader.h"
#include "sherd/recompute/recompute_policy.h"

namespace sherd {
namespace {

using nlohmann::json;

const std::vector<std::string> kPresets = {"tiny", "small", "base", "1b", "7b", "bytes-10m"};
constexpr NumberRange kPositive{.min = 0, .low = Bound::open};
constexpr NumberRange kShare{.min = 0, .max = 1, .high = Bound::open};

const std::vector<std::string>& all_paths();

void read_model(JsonReader reader, ModelConfig& model) {
  const bool has_path = !reader.is_null("path") && reader.string("path", model.path);
  const bool has_preset = !reader.is_null("preset") && reader.choice("preset", model.preset, kPresets);
  int overrides = 0;
  overrides += reader.integer("dim", model.dim, {});
  overrides += reader.integer("layers", model.layers, {});
  overrides += reader.integer("heads", model.heads, {});
  overrides += reader.integer("kv_heads", model.kv_heads, {});
  overrides += reader.integer("ffn", model.ffn, {});
  overrides += reader.integer("vocab", model.vocab, {});
  overrides += reader.integer("context", model.context, {});
  double rope_theta = 10000;
  if (reader.number("rope_theta", rope_theta, kPositive)) model.rope_theta = rope_theta, ++overrides;
  bool tied = false;
  if (reader.boolean("tie_embeddings", tied)) {
    model.embeddings = tied ? Embeddings::tied : Embeddings::untied;
    ++overrides;
  }
  reader.finish(all_paths());
  if (has_path == has_preset) {
    config_error("config",
                 "got {} for 'model', expected one of model.path (a Hugging Face folder) and model.preset ({}); try {}",
                 has_path ? "both a path and a preset" : "neither a path nor a preset", fmt::join(kPresets, ", "),
                 has_path ? "model.preset null" : "model.preset \"tiny\"");
  }
  if (has_path && overrides > 0) {
    config_error("config",
                 "got 'model.path' together with {} other keys of 'model', expected the shape in its config.json only; "
                 "try to remove them, or model.preset instead of the path",
                 overrides);
  }
}

void read_data(JsonReader reader, DataConfig& data) {
  const bool has_tokens = !reader.is_null("tokens") && reader.string("tokens", data.tokens);
  const bool has_text = !reader.is_null("text") && reader.strings("text", data.text);
  bool synthetic = false;
  if (!reader.is_null("synthetic")) reader.boolean("synthetic", synthetic);
  const bool has_type = reader.choice("token_type", data.token_type, {"uint16", "uint32"});
  reader.integer_or_auto("context", data.context, {});
  std::string order = "shuffled";
  reader.choice("order", order, {"sequential", "shuffled"});
  data.order = order == "shuffled" ? DataOrder::shuffled : DataOrder::sequential;
  const bool has_mask = !reader.is_null("mask") && reader.string("mask", data.mask);
  if (!reader.is_null("separator"))
    reader.integer("separator", data.separator, {.min = 0, .max = std::numeric_limits<uint32_t>::max()});
  reader.number("validation", data.validation, kShare);
  reader.finish(all_paths());

  std::vector<std::string> given;
  if (has_tokens) given.push_back("tokens");
  if (has_text) given.push_back("text");
  if (synthetic) given.push_back("synthetic");
  if (given.size() != 1) {
    config_error("config",
                 "got {} for 'data', expected exactly one of data.tokens, data.text and data.synthetic; try {}",
                 given.empty() ? "no source" : fmt::format("{}", fmt::join(given, " and ")),
                 given.empty() ? "\"synthetic\": true" : fmt::format("data.{} null", given.back()));
  }
  if (has_text && data.text.empty()) {
    config_error("config",
                 "got an array of 0 for 'data.text', expected files, folders or globs; try [\"corpus/**/*.txt\"]");
  }
  if (has_type && !has_tokens) {
    config_error("config", "got 'data.token_type' with data.{}, expected it with data.tokens only; try to remove it",
                 given[0]);
  }
  if (has_mask && !has_tokens) {
    config_error("config", "got 'data.mask' with data.{}, expected it with data.tokens only; try data.mask null",
                 given[0]);
  }
  using Source = DataConfig::Source;
  data.source = has_tokens ? Source::tokens : has_text ? Source::text : Source::synthetic;
}

void read_batch(JsonReader reader, BatchConfig& batch) {
  reader.integer("rows", batch.rows, {});
  reader.integer_or_auto("micro", batch.micro, {});
  reader.integer("accumulate", batch.accumulate, {});
  std::string reduce = "every";
  reader.choice("reduce", reduce, {"every", "last"});
  std::string last = "next_epoch";
  reader.choice("last", last, {"next_epoch", "drop", "weighted"});
  batch.last = last == "drop" ? LastStep::drop : last == "weighted" ? LastStep::weighted : LastStep::next_epoch;
  batch.reduce = reduce == "every" ? ReducePoint::every : ReducePoint::last;
  reader.finish(all_paths());
}

void read_schedule(JsonReader reader, ScheduleConfig& schedule) {
  reader.choice("type", schedule.type, {"constant", "linear", "cosine"});
  reader.integer("warmup", schedule.warmup, {.min = 0});
  reader.number("final_ratio", schedule.final_ratio, {.min = 0, .max = 1});
  reader.finish(all_paths());
}

void read_mesh(JsonReader reader, TrainConfig& config) {
  reader.integer("replicate", config.replicate, {});
  reader.integer_or_auto("shard", config.shard, {});
  reader.finish(all_paths());
}

void read_clip(JsonReader& reader, std::optional<double>& clip) {
  if (reader.is_null("clip")) {
    clip = std::nullopt;
  } else if (const json* value = reader.find("clip")) {
    clip = to_number(*value, reader.path("clip"), kPositive, 1.0);
  }
}

void read_reshard(JsonReader& reader, ReshardAfterForward& reshard) {
  const json* value = reader.find("reshard_after_forward");
  if (value == nullptr) return;
  if (value->is_boolean()) {
    reshard = value->get<bool>() ? ReshardAfterForward::always : ReshardAfterForward::never;
  } else if (*value == "auto") {
    reshard = ReshardAfterForward::automatic;
  } else {
    config_error("config", "got {} for '{}', expected \"auto\", true or false; try \"auto\"", describe(*value),
                 reader.path("reshard_after_forward"));
  }
}

void read_recompute(JsonReader& reader, std::string& recompute) {
  if (!reader.string("recompute", recompute)) return;
  try {
    recompute = RecomputePolicy::parse(recompute).text();
  } catch (const ConfigError&) {
    config_error("config", "got {} for 'recompute', expected none, full or every:K with K of at least 1; try \"full\"",
                 describe(recompute));
  }
}

json model_to_json(const ModelConfig& model) {
  json out = json::object();
  if (!model.path.empty()) out["path"] = model.path;
  if (!model.preset.empty()) out["preset"] = model.preset;
  const auto put = [&](const char* key, const auto& value) {
    if (value) out[key] = *value;
  };
  put("dim", model.dim);
  put("layers", model.layers);
  put("heads", model.heads);
  put("kv_heads", model.kv_heads);
  put("ffn", model.ffn);
  put("vocab", model.vocab);
  put("context", model.context);
  put("rope_theta", model.rope_theta);
  if (model.embeddings) out["tie_embeddings"] = *model.embeddings == Embeddings::tied;
  return out;
}

json data_to_json(const DataConfig& data) {
  json out = {{"order", data.order == DataOrder::shuffled ? "shuffled" : "sequential"},
              {"validation", data.validation}};
  switch (data.source) {
    case DataConfig::Source::tokens:
      out["tokens"] = data.tokens;
      out["token_type"] = data.token_type;
      break;
    case DataConfig::Source::text:
      out["text"] = data.text;
      break;
    case DataConfig::Source::synthetic:
      out["synthetic"] = true;
      break;
  }
  if (!data.mask.empty()) out["mask"] = data.mask;
  if (data.separator) out["separator"] = *data.separator;
  out["context"] = data.context == 0 ? json("auto") : json(data.context);
  return out;
}

json batch_to_json(const BatchConfig& batch) {
  constexpr const char* last[] = {"next_epoch", "drop", "weighted"};
  return {{"rows", batch.rows},
          {"micro", batch.micro == 0 ? json("auto") : json(batch.micro)},
          {"accumulate", batch.accumulate},
          {"reduce", batch.reduce == ReducePoint::every ? "every" : "last"},
          {"last", last[static_cast<int>(batch.last)]}};
}

json reshard_to_json(ReshardAfterForward reshard) {
  if (reshard == ReshardAfterForward::automatic) return "auto";
  return reshard == ReshardAfterForward::always;
}

/// "section.key" of every key that stands in a section, for hints.
const std::vector<std::string>& all_paths() {
  static const std::vector<std::string> paths = [] {
    TrainConfig full;
    full.data.tokens = full.model.path = full.model.preset = "x";
    full.data.source = DataConfig::Source::tokens;
    full.model.dim = full.model.layers = full.model.heads = full.model.kv_heads = full.model.ffn = full.model.vocab = 1;
    full.data.mask = "x";
    full.data.separator = 0;
    full.model.rope_theta = 1;
    full.model.embeddings = Embeddings::tied;
    std::vector<std::string> result = {"data.text",          "data.synthetic",    "optimizer.momentum",
                                       "optimizer.nesterov", "optimizer.exclude", "optimizer.adamw",
                                       "optimizer.scale",    "loss_scale.initial"};
    const json document = to_json(full);
    for (const auto& [section, value] : document.items()) {
      if (!value.is_object()) continue;
      for (const auto& [key, ignored] : value.items()) result.push_back(section + "." + key);
    }
    return result;
  }();
  return paths;
}

template <class Read, class Target>
bool read_section(JsonReader& reader, const char* key, Read read, Target& target) {
  std::optional<JsonReader> below = reader.object(key);
  if (below) read(*below, target);
  return below.has_value();
}

/// Reads what stands beside the model, the data and the run.
void read_training(JsonReader& reader, TrainConfig& config) {
  read_section(reader, "batch", read_batch, config.batch);
  if (auto below = reader.object("optimizer")) read_optimizer(*below, config.optimizer, all_paths());
  if (auto below = reader.object("precision")) read_precision(*below, config.precision, all_paths());
  read_loss_scale(reader, config.loss_scale, all_paths());
  read_section(reader, "schedule", read_schedule, config.schedule);
  read_section(reader, "mesh", read_mesh, config);
  read_clip(reader, config.clip);
  reader.choice("strategy", config.strategy, {"ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp"});
  if (config.strategy == "fsdp") config.strategy = "zero3";
  read_reshard(reader, config.reshard_after_forward);
  reader.integer("persistent_below", config.persistent_below, {.min = 0, .max = std::numeric_limits<int64_t>::max()});
  reader.string("transport", config.transport);
  reader.integer("steps", config.steps, {});
  reader.number("timeout_s", config.timeout_s, {.min = 0, .max = 1e6, .low = Bound::open});
}

}  // namespace

TrainConfig read_train_config(const json& document) {
  TrainConfig config;
  JsonReader reader(document, "");
  const bool has_model = read_section(reader, "model", read_model, config.model);
  const bool has_data = read_section(reader, "data", read_data, config.data);
  read_training(reader, config);
  read_recompute(reader, config.recompute);
  reader.string("device", config.device);
  reader.integer("seed", config.seed, {.min = 0, .max = std::numeric_limits<int64_t>::max()});
  reader.string("output", config.output);
  reader.integer("eval_every", config.eval_every, {.min = 0});
  reader.integer("eval_rows", config.eval_rows, {});
  reader.finish(all_paths());
  if (!has_model) {
    config_error("config", "got no 'model', expected a path or a preset; try \"model\": {{\"preset\": \"tiny\"}}");
  }
  if (!has_data) {
    config_error("config", "got no 'data', expected tokens, text or synthetic; try \"data\": {{\"synthetic\": true}}");
  }
  check_config(config);
  return config;
}

TrainConfig read_program_config(const json& document) {
  TrainConfig config;
  JsonReader reader(document, "");
  for (const char* key : {"model", "data"})
    if (reader.find(key) != nullptr)
      config_error("config",
                   "got '{}' in a program's configuration, expected none: the program brings its own; try without",
                   key);
  read_training(reader, config);
  reader.finish(all_paths());
  config.model.preset = "tiny";  // something that passes
  check_config(config);
  return config;
}

TrainConfig load_train_config(const std::string& file, const std::vector<std::string>& overrides) {
  json document = read_json_file(file);
  for (const std::string& assignment : overrides) apply_override(document, assignment);
  return read_train_config(document);
}

json to_json(const TrainConfig& config) {
  return {
      {"model", model_to_json(config.model)},
      {"data", data_to_json(config.data)},
      {"batch", batch_to_json(config.batch)},
      {"optimizer", to_json(config.optimizer)},
      {"precision", to_json(config.precision)},
      {"loss_scale", to_json(config.loss_scale)},
      {"schedule",
       {{"type", config.schedule.type},
        {"warmup", config.schedule.warmup},
        {"final_ratio", config.schedule.final_ratio}}},
      {"clip", config.clip ? json(*config.clip) : json(nullptr)},
      {"strategy", config.strategy},
      {"reshard_after_forward", reshard_to_json(config.reshard_after_forward)},
      {"recompute", config.recompute},
      {"persistent_below", config.persistent_below},
      {"transport", config.transport},
      {"mesh", {{"replicate", config.replicate}, {"shard", config.shard == 0 ? json("auto") : json(config.shard)}}},
      {"device", config.device},
      {"steps", config.steps},
      {"seed", config.seed},
      {"output", config.output},
      {"eval_every", config.eval_every},
      {"eval_rows", config.eval_rows},
      {"timeout_s", config.timeout_s},
  };
}

}  // namespace sherd
