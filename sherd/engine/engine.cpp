#include "sherd/engine/engine.h"

#include "sherd/base/error.h"
#include "sherd/engine/broadcast_buffers.h"
#include "sherd/memory/deferred.h"
#include "sherd/shard/discover.h"

namespace sherd {
namespace {

// Of a model whose values are yet to come.
void convert_parameters(torch::nn::Module& module, const Precision& precision) {
  for (auto& item : module.named_parameters()) {
    at::Tensor& parameter = item.value();
    const at::ScalarType type = precision.keeps_fp32(item.key()) ? at::kFloat : precision.compute;
    if (parameter.scalar_type() != type)
      parameter.set_data(deferred_tensor(parameter.sizes(), parameter.options().dtype(type)));
  }
}

ParameterTypes types_in(const Precision& precision, const FoundParameter& parameter) {
  if (precision.keeps_fp32(parameter.fqn)) return {at::kFloat, at::kFloat};
  return {precision.storage, precision.reduce};
}

ShardOptions shard_options(const EngineOptions& options, const Transport& transport) {
  ShardOptions shard;
  shard.strategy = find_strategy(options.strategy);
  shard.reshard_after_forward = options.reshard_after_forward;
  shard.summing = options.summing;
  shard.device = options.device;
  shard.units = options.units;
  shard.recompute = options.recompute;
  shard.writing_units = options.writing_units;
  shard.persistent_below = options.persistent_below;
  if (options.precision)
    shard.types = [precision = *options.precision](const auto& parameter) { return types_in(precision, parameter); };
  shard.mesh = Mesh::over(transport.size(), transport.rank(), options.replicate, 0);
  return shard;
}

}  // namespace

void EngineOptions::validate() const {
  find_strategy(strategy).validate({.replicate = replicate});
  if (persistent_below < 0)
    config_error("persistent_below", "got {} bytes, expected 0 or more; try 65536", persistent_below);
  StepOptions::validate();
  if (moments == MomentType::eight_bits && !device.is_cpu())
    config_error("optimizer.type", "got 8-bit moments on {}, expected them on the CPU; try fp32 moments", device.str());
}

Engine::Engine(std::shared_ptr<torch::nn::Module> model, std::shared_ptr<Transport> transport, EngineOptions options,
               const ParameterSource& source)
    : module_(std::move(model)), transport_(std::move(transport)), options_(std::move(options)) {
  options_.validate();
  // An odd factor: the ranks' seeds are far apart.
  if (options_.seed)
    at::manual_seed(*options_.seed + 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(transport_->rank()));
  if (options_.precision) {
    if (options_.precision->norms == Norms::fp32)
      for (auto& name : norm_parameters(*module_)) options_.precision->fp32_names.push_back(std::move(name));
    convert_parameters(*module_, *options_.precision);
  }
  model_ = std::make_unique<ShardedModel>(module_, *transport_, ledger_, shard_options(options_, *transport_));
  step_.emplace(*model_, ledger_, options_, options_.precision ? options_.precision->master : Master::nearest);
  warnings_ = model_->warnings();
  warnings_.insert(warnings_.end(), step_->notes().begin(), step_->notes().end());
  model_->fill(source, [this](size_t g, size_t p, size_t o, const at::Tensor& values) {
    set_values(step_->piece(step_->shards().index_of(g, p, o)), values);
  });
  if (options_.buffers == Buffers::broadcast) broadcast_buffers(*module_, *transport_);
}

Engine::~Engine() = default;

void Engine::backward(const at::Tensor& loss) {
  try {
    model_->course().expect_backward({loss});
    (options_.loss_scale ? loss * loss_scale() : loss).backward();
    model_->course().finish_backward();
  } catch (const std::exception& error) {
    model_->course().interrupt(error.what());
    throw;
  }
}

void Engine::failed_in_forward(const std::exception& error) {
  model_->course().interrupt(error.what());
  if (const auto* torchs = dynamic_cast<const c10::Error*>(&error)) explain_write(*torchs, &model_->root_unit());
}

StepReport Engine::step(double lr_scale, std::span<const double> shared_values) {
  return step_->run(lr_scale, shared_values);
}

std::vector<OwnedShard> Engine::shards_with(const std::function<at::Tensor(size_t)>& values) const {
  std::vector<OwnedShard> shards;
  for (const size_t i : step_->shards().of_this_rank()) {
    shards.push_back(step_->shards().all()[i]);
    shards.back().values = values(i);
  }
  return shards;
}

std::vector<OwnedShard> Engine::shards() {
  return shards_with([this](size_t i) { return step_->shards().all()[i].values; });
}

std::vector<OwnedShard> Engine::master_shards() {
  return shards_with([this](size_t i) { return values_of(step_->piece(i)); });
}

std::vector<OwnedShard> Engine::gradient_shards() {
  return shards_with([this](size_t i) { return step_->shards().gradient(i); });
}

std::vector<std::pair<std::string, at::Tensor>> Engine::buffers() const {
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (const auto& item : module_->named_buffers())
    if (item.value().defined()) all.emplace_back(item.key(), item.value());
  return all;
}

std::vector<std::pair<std::string, std::string>> Engine::aliases() const {
  std::vector<std::pair<std::string, std::string>> tied;
  for (auto& alias : parameter_aliases(*module_))
    if (alias.first != alias.second) tied.push_back(std::move(alias));
  return tied;
}

}  // namespace sherd
