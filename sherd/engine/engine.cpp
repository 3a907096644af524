#include "sherd/engine/engine.h"

#include <cmath>

#include "sherd/base/error.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/reduction.h"

namespace sherd {

void EngineOptions::validate() const {
  find_strategy(strategy);
  if (clip && !(*clip > 0)) config_error("clip", "got {}, expected a number above 0, or null; try 1.0", *clip);
  update.validate();
  optimizer.validate();
}

Engine::Engine(std::shared_ptr<torch::nn::Module> model, std::shared_ptr<Transport> transport, EngineOptions options,
               const ParameterSource& source)
    : module_(std::move(model)),
      transport_(std::move(transport)),
      options_(std::move(options)),
      optim_groups_(options_.optimizer, options_.optimizer_groups),
      rule_(make_update_rule(options_.update)) {
  options_.validate();
  const ShardOptions shard_options{find_strategy(options_.strategy), options_.reshard_after_forward, options_.summing,
                                   options_.device};
  model_ = std::make_unique<ShardedModel>(module_, *transport_, ledger_, shard_options);
  for (const auto& group : model_->groups()) {
    const auto& layout = group->layout();
    auto& hyper = hyper_.emplace_back();
    for (const auto& parameter : layout.parameters) hyper.push_back(&optim_groups_.find(parameter.fqn));
    auto& state = state_.emplace_back();
    if (!group->trainable()) continue;
    const int64_t elements = layout.shard_elements * static_cast<int64_t>(model_->store().owned().size());
    for (size_t k = 0; k < rule_->state_names().size(); ++k)
      state.push_back(make_buffer(ledger_, MemoryKind::moments, layout.unit, elements, options_.device));
  }
  model_->fill(source);
}

Engine::~Engine() = default;

void Engine::backward(const at::Tensor& loss) {
  try {
    loss.backward();
    model_->finish_backward();
  } catch (...) {
    model_->abandon_backward();
    throw;
  }
}

StepReport Engine::step(double lr_scale, std::span<const double> shared_values) {
  const at::NoGradGuard no_grad;
  model_->finish_backward();
  StepReport report;
  // This exchange is also what keeps an owner from overwriting parameters that a peer's backward still reads.
  report.grad_norm = global_norm(shared_values, report.shared);
  double gradient_scale = 1;
  if (options_.clip) gradient_scale = std::min(1.0, *options_.clip / (report.grad_norm + 1e-6));
  ++steps_;
  try {
    for (size_t g = 0; g < state_.size(); ++g)
      if (model_->groups()[g]->trainable()) update_group(g, lr_scale, gradient_scale);
    model_->publish();
  } catch (const std::exception& error) {
    fault("step", "the update of step {} failed half-way: {}; try to go on from the last checkpoint", steps_,
          error.what());
  }
  return report;
}

// fp64 partial sums per group and owner range, added group by group and owner by owner: the same order everywhere.
double Engine::global_norm(std::span<const double> shared_values, std::vector<double>& shared) {
  std::vector<double> mine;
  for (size_t g = 0; g < state_.size(); ++g) {
    if (!model_->groups()[g]->trainable()) continue;
    if (!model_->has_gradients(g)) model_->store().gradient(g).zero_();
    mine.push_back(sum_of_squares(own_gradient(g)));
  }
  const size_t groups = mine.size();
  mine.insert(mine.end(), shared_values.begin(), shared_values.end());
  const std::vector<double> all = transport_->exchange(mine);
  double sum = 0;
  for (size_t g = 0; g < groups; ++g)
    for (size_t r = 0; r < static_cast<size_t>(transport_->size()); ++r) sum += all[r * mine.size() + g];
  for (size_t r = 0; r < static_cast<size_t>(transport_->size()); ++r) {
    const auto first = all.begin() + static_cast<int64_t>(r * mine.size() + groups);
    shared.insert(shared.end(), first, first + static_cast<int64_t>(shared_values.size()));
  }
  return std::sqrt(sum);
}

at::Tensor Engine::own_gradient(size_t g) const {
  const int64_t piece = model_->groups()[g]->layout().shard_elements;
  const int64_t index = model_->store().owned().size() == 1 ? 0 : transport_->rank();
  return model_->store().gradient(g).narrow(0, index * piece, piece);
}

void Engine::update_group(size_t g, double lr_scale, double gradient_scale) {
  Store& store = model_->store();
  const GroupLayout& layout = model_->groups()[g]->layout();
  const at::Tensor gradient = store.gradient(g);
  for (size_t o = 0; o < store.owned().size(); ++o) {
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const at::Tensor values = store.rows(g, p, store.owned()[o]);
      if (values.numel() == 0) continue;
      const int64_t first = static_cast<int64_t>(o) * layout.shard_elements + layout.parameters[p].shard_offset;
      const auto piece = [&](const at::Tensor& all) { return all.narrow(0, first, values.numel()); };
      UpdatePiece update{values, piece(gradient), {}};
      for (const Buffer& state : state_[g]) update.state.push_back(piece(state.tensor));
      rule_->update(update, *hyper_[g][p], {steps_, lr_scale, gradient_scale});
    }
  }
}

ShardView Engine::view_of(size_t g, size_t p, int owner, at::Tensor values) const {
  const GroupLayout& layout = model_->groups()[g]->layout();
  const auto& parameter = layout.parameters[p];
  return {parameter.fqn, parameter.sizes, layout.rows(p, owner), parameter.row_elements, std::move(values)};
}

std::vector<ShardView> Engine::shards() {
  std::vector<ShardView> views;
  const int me = transport_->rank();
  for (size_t g = 0; g < state_.size(); ++g)
    for (size_t p = 0; p < model_->groups()[g]->parameters().size(); ++p)
      views.push_back(view_of(g, p, me, model_->store().rows(g, p, me)));
  return views;
}

std::vector<ShardView> Engine::gradient_shards() {
  std::vector<ShardView> views;
  const int me = transport_->rank();
  for (size_t g = 0; g < state_.size(); ++g) {
    if (!model_->groups()[g]->trainable()) continue;
    const auto& layout = model_->groups()[g]->layout();
    const at::Tensor gradient = own_gradient(g);
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const int64_t count = layout.rows(p, me).count * layout.parameters[p].row_elements;
      views.push_back(view_of(g, p, me, gradient.narrow(0, layout.parameters[p].shard_offset, count)));
    }
  }
  return views;
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
