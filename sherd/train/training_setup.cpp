#include "sherd/train/training_setup.h"

#include <ATen/Context.h>

#include "sherd/base/error.h"
#include "sherd/checkpoint/hugging_face.h"
#include "sherd/comm/connect.h"
#include "sherd/comm/mesh.h"
#include "sherd/data/step_plan.h"
#include "sherd/data/target_rules.h"
#include "sherd/models/initializer.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/unit.h"

namespace sherd {
namespace {

LlamaConfig preset_with_overrides(const ModelConfig& config) {
  LlamaConfig model = LlamaConfig::preset(config.preset);
  const bool new_heads = config.dim || config.heads;
  const auto set = [](int64_t& field, const std::optional<int64_t>& value) { field = value.value_or(field); };
  set(model.dim, config.dim);
  set(model.layers, config.layers);
  set(model.heads, config.heads);
  // A new number of heads without its own kv_heads means as many of each.
  set(model.kv_heads, config.kv_heads ? config.kv_heads : config.heads);
  set(model.ffn, config.ffn);
  set(model.vocab, config.vocab);
  set(model.context, config.context);
  model.rope_theta = config.rope_theta.value_or(model.rope_theta);
  model.head = config.head.value_or(model.head);
  if (new_heads && model.heads > 0) model.head_dim = model.dim / model.heads;
  model.validate();
  return model;
}

at::Device checked_device(const std::string& name) {
  try {
    const at::Device device(name);
    if (device.is_cpu() || (device.is_cuda() && at::hasCUDA())) return device;
  } catch (const c10::Error&) {  // not a device at all: said below
  }
  config_error("device", "got '{}', expected cpu{}; try cpu", name,
               at::hasCUDA() ? " or cuda" : " (there is no other here)");
}

std::vector<TensorShape> expected_tensors(const LlamaConfig& config) {
  std::vector<TensorShape> shapes;
  const auto model = unit_llama(config);
  for (const auto& unit : discover_units(*model))
    for (const auto& parameter : unit.parameters) shapes.push_back({parameter.fqn, parameter.tensor.sizes().vec()});
  return shapes;
}

std::shared_ptr<const TokenSource> open_source(const TrainConfig& config, int64_t vocab) {
  switch (config.data.source) {
    case DataConfig::Source::tokens:
      return open_token_file(config.data.tokens, config.data.token_type);
    case DataConfig::Source::text:
      return open_text(config.data.text);
    case DataConfig::Source::synthetic:
      return synthetic_source(vocab, static_cast<uint64_t>(config.seed));
  }
  SHERD_CHECK(false);
}

OptimGroup optim_group(const GroupConfig& config, const Hyperparameters& defaults) {
  OptimGroup group{config.match, defaults};
  group.values.lr = config.lr.value_or(defaults.lr);
  group.values.beta1 = config.beta1.value_or(defaults.beta1);
  group.values.beta2 = config.beta2.value_or(defaults.beta2);
  group.values.eps = config.eps.value_or(defaults.eps);
  group.values.weight_decay = config.weight_decay.value_or(defaults.weight_decay);
  return group;
}

EngineOptions engine_options(const TrainConfig& config) {
  EngineOptions options;
  options.strategy = config.strategy;
  options.clip = config.clip;
  options.reshard_after_forward = config.reshard_after_forward;
  options.replicate = static_cast<int>(config.replicate);
  options.recompute = config.recompute;
  options.persistent_below = config.persistent_below;
  const OptimizerConfig& o = config.optimizer;
  options.update = o.rule();
  options.optimizer = o.values;
  options.moments = o.type.moments;
  options.fp32_moments = o.fp32_moments;
  if (o.type.has_muon()) options.muon = o.muon;
  options.not_muon = o.not_muon;
  for (const GroupConfig& group : o.groups) options.optimizer_groups.push_back(optim_group(group, options.optimizer));
  if (!o.no_decay.empty()) {
    OptimGroup group{o.no_decay, options.optimizer};
    group.values.weight_decay = 0;
    options.optimizer_groups.push_back(std::move(group));
  }
  return options;
}

// A user's own pattern that matches nothing is a slip; the default ones fit many models and need not all match.
void warn_of_unused_patterns(const OptimizerConfig& config, const std::vector<TensorShape>& tensors,
                             std::vector<std::string>& warnings) {
  std::vector<std::string> names;
  for (const auto& tensor : tensors) names.push_back(tensor.name);
  const auto warn = [&](const std::string& key, const std::vector<std::string>& patterns) {
    for (const auto& pattern : OptimGroups({}, {{patterns, {}}}).unused_patterns(names))
      warnings.push_back(fmt::format("warning: {}: '{}' matches no parameter", key, pattern));
  };
  if (config.no_decay != OptimizerConfig().no_decay) warn("optimizer.no_decay", config.no_decay);
  warn("optimizer.exclude", config.fp32_moments);
  if (config.not_muon != OptimizerConfig().not_muon) warn("optimizer.adamw", config.not_muon);
  for (size_t i = 0; i < config.groups.size(); ++i)
    warn(fmt::format("optimizer.groups[{}].match", i), config.groups[i].match);
}

}  // namespace

std::shared_ptr<LlamaImpl> unit_llama(const LlamaConfig& config) {
  return std::make_shared<LlamaImpl>(config, [](const LlamaConfig& block) -> std::shared_ptr<LlamaBlockImpl> {
    return std::make_shared<UnitModule<LlamaBlockImpl>>(block);
  });
}

TrainingSetup prepare_training(const TrainConfig& config, int world, TokenScan scan) {
  TrainingSetup setup;
  const at::Device device = checked_device(config.device);
  find_strategy(config.strategy);
  validate_transport(config.transport);
  Mesh::over(world, 0, static_cast<int>(config.replicate), static_cast<int>(config.shard));  // throws if it is not one

  if (!config.model.path.empty()) {
    const HuggingFaceFolder folder(config.model.path);
    setup.model = LlamaConfig::from_hugging_face(folder.config(), config.model.path + "/config.json");
    folder.check_shapes(expected_tensors(setup.model));
    setup.source = folder.source();
  } else {
    setup.model = preset_with_overrides(config.model);
    setup.source = seeded_normal(static_cast<uint64_t>(config.seed));
  }

  const int64_t context = config.data.context > 0 ? config.data.context : setup.model.context;
  if (context > setup.model.context)
    config_error("data.context", "got {}, expected at most the model's context of {}; try {}", context,
                 setup.model.context, setup.model.context);
  const auto source = open_source(config, setup.model.vocab);
  if (scan == TokenScan::read) check_vocab(*source, setup.model.vocab);
  if (config.data.separator && *config.data.separator >= setup.model.vocab)
    config_error("data.separator", "got {}, expected a token below the vocabulary of {}; try {}",
                 *config.data.separator, setup.model.vocab, setup.model.vocab - 1);
  if (config.data.validation > 0 && config.data.source == DataConfig::Source::synthetic)
    config_error("data.validation", "got {} with synthetic data, which has no end; try 0", config.data.validation);
  if (config.eval_every > 0 && config.data.validation == 0)
    config_error("eval_every",
                 "got {} without validation data; try \"data\": {{\"validation\": 0.05}}, or eval_every 0",
                 config.eval_every);
  setup.data = split_source(with_target_rules(source, {config.data.mask, config.data.separator}),
                            config.data.validation, context);
  setup.train.emplace(setup.data.train->size(),
                      SamplerOptions{context, config.batch.rows, config.batch.accumulate, config.data.order,
                                     static_cast<uint64_t>(config.seed), config.batch.last});
  if (setup.data.validation)
    setup.validation.emplace(setup.data.validation->size(),
                             SamplerOptions{context, config.eval_rows, 1, Order::sequential, 0});
  if (setup.validation && config.eval_every > 0 && count_targets(*setup.data.validation, *setup.validation, 0) == 0)
    setup.warnings.push_back("warning: the validation rows have no targets: their loss is 0");
  setup.engine = engine_options(config);
  setup.engine.schedule = config.schedule;
  setup.engine.schedule.steps = config.steps;
  setup.engine.device = device;
  const Precision& precision = setup.engine.precision.emplace(resolve(config.precision, device));
  setup.engine.loss_scale = config.loss_scale.resolve(precision.fp16());
  if (const auto note = note_on(config.precision, precision, device)) setup.warnings.push_back(*note);
  setup.model.device = device.str();
  setup.engine.validate();
  warn_of_unused_patterns(config.optimizer, expected_tensors(setup.model), setup.warnings);
  return setup;
}

}  // namespace sherd
