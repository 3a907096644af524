#include "sherd/config/check_config.h"

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "sherd/base/error.h"

namespace sherd {
namespace {

namespace fs = std::filesystem;

// Paths are user input of any length: the forms with an error code do not throw.
bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}
bool exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

void check_model(const ModelConfig& model) {
  if (model.path.empty()) return;
  if (!is_file(fs::path(model.path) / "config.json")) {
    config_error(
        "config",
        "got {} for 'model.path', expected a folder with a config.json; try the absolute path of a Hugging Face folder",
        model.path);
  }
}

void check_data(const DataConfig& data) {
  if (data.source == DataConfig::Source::tokens && !is_file(data.tokens)) {
    config_error("config", "got {} for 'data.tokens', expected a file of {} tokens{}; try its absolute path",
                 data.tokens, text_of(kTokenTypeNames, data.token_type),
                 exists(data.tokens) ? "" : ", and there is none");
  }
  if (!data.mask.empty() && !is_file(data.mask)) {
    config_error("config", "got {} for 'data.mask', expected a file of one byte a token{}; try its absolute path",
                 data.mask, exists(data.mask) ? "" : ", and there is none");
  }
  for (size_t i = 0; data.source == DataConfig::Source::text && i < data.text.size(); ++i) {
    const bool glob = data.text[i].find_first_of("*?[") != std::string::npos;
    if (glob || exists(data.text[i])) continue;
    config_error(
        "config",
        "got {} for 'data.text[{}]', expected a file, folder or glob, and there is none; try its absolute path",
        data.text[i], i);
  }
}

void check_device(const TrainConfig& config) {
  try {
    if (c10::Device(config.device).type() != c10::DeviceType::Meta) return;
  } catch (const c10::Error&) {
  } catch (const std::exception&) {  // an index that no integer holds
  }
  config_error("config", "got \"{}\" for 'device', expected a device of torch such as cpu, cuda or cuda:0; try \"cpu\"",
               config.device);
}

void check_combinations(const TrainConfig& config) {
  if (config.schedule.warmup > config.steps) {
    config_error("config", "got {} for 'schedule.warmup', expected at most 'steps' ({}); try {}",
                 config.schedule.warmup, config.steps, config.steps / 10);
  }
  if (config.reshard_after_forward == ReshardPolicy::all &&
      find_strategy(config.strategy).parameters == Spread::whole) {
    config_error(
        "config",
        "got true for 'reshard_after_forward' with strategy \"{}\", which keeps parameters whole, expected \"auto\" "
        "or false; try \"auto\", or strategy \"zero3\"",
        config.strategy);
  }
  if (config.replicate > 1 && find_strategy(config.strategy).axes == MeshAxes::shard) {
    config_error(
        "config",
        "got {} for 'mesh.replicate' with strategy \"{}\", which shards over all ranks, expected 1; try strategy "
        "\"hsdp\"",
        config.replicate, config.strategy);
  }
  if (config.persistent_below > 0 && find_strategy(config.strategy).parameters == Spread::whole) {
    config_error(
        "config",
        "got {} for 'persistent_below' with strategy \"{}\", which keeps parameters whole, expected 0; try 0, or "
        "strategy \"zero3\"",
        config.persistent_below, config.strategy);
  }
  if (config.eval_every > 0 && config.data.validation == 0) {
    config_error("config",
                 "got {} for 'eval_every' without validation data, expected a share in 'data.validation'; try "
                 "\"validation\": 0.01 in data",
                 config.eval_every);
  }
}

}  // namespace

void check_run(const TrainConfig& config) {
  check_combinations(config);
  check_device(config);
}

void check_sources(const TrainConfig& config) {
  check_model(config.model);
  check_data(config.data);
}

}  // namespace sherd
