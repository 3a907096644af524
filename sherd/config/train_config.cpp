#include "sherd/config/train_config.h"

#include <nlohmann/json.hpp>

#include "sherd/config/check_config.h"
#include "sherd/config/json_file.h"
#include "sherd/config/settings.h"

namespace sherd {
namespace {

using nlohmann::json;

TrainConfig read_settings(JsonReader& reader, Caller caller) {
  TrainConfig config;
  read_fields(reader, {caller, setting_paths(caller)}, train_settings(), config);
  return config;
}

}  // namespace

TrainConfig read_train_config(const json& document) {
  JsonReader reader(document, "");
  const TrainConfig config = read_settings(reader, Caller::command);
  if (!reader.contains("model"))
    config_error("config", "got no 'model', expected a path or a preset; try \"model\": {{\"preset\": \"tiny\"}}");
  if (!reader.contains("data"))
    config_error("config", "got no 'data', expected tokens, text or synthetic; try \"data\": {{\"synthetic\": true}}");
  check_run(config);
  check_sources(config);
  return config;
}

TrainConfig read_program_config(const json& document) {
  JsonReader reader(document, "");
  const TrainConfig config = read_settings(reader, Caller::program);
  check_run(config);
  return config;
}

TrainConfig load_train_config(const std::string& file, const std::vector<std::string>& overrides) {
  json document = read_json_file(file);
  for (const std::string& assignment : overrides) apply_override(document, assignment);
  return read_train_config(document);
}

json to_json(const TrainConfig& config, Caller caller) {
  json out = json::object();
  write_fields(out, caller, train_settings(), config);
  return out;
}

}  // namespace sherd
