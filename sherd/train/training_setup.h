// From a configuration to the things that a training needs, all checked. Costs no memory for weights.
#pragma once

#include <memory>
#include <optional>

#include "sherd/base/parameter_source.h"
#include "sherd/config/train_config.h"
#include "sherd/data/sampler.h"
#include "sherd/data/split.h"
#include "sherd/engine/engine.h"
#include "sherd/models/llama.h"

namespace sherd {

struct TrainingSetup {
  LlamaConfig model;
  ParameterSource source;
  Split data;
  std::optional<Sampler> train;
  std::optional<Sampler> validation;
  EngineOptions engine;
  std::vector<std::string> warnings;  // what is allowed, but perhaps not meant
};

/// Whether to read the whole token stream for ids outside the vocabulary, or to trust whoever has.
enum class TokenScan { read, trust };

/// Throws ConfigError.
TrainingSetup prepare_training(const TrainConfig& config, int world, TokenScan scan);

/// A Llama whose blocks are units.
std::shared_ptr<LlamaImpl> unit_llama(const LlamaConfig& config);

}  // namespace sherd
