#include "sherd/engine/engine.h"

#include <cmath>

#include "sherd/base/error.h"
#include "sherd/engine/broadcast_buffers.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/reduction.h"

namespace sherd {
namespace {

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
  shard.mesh = Mesh::over(transport.size(), transport.rank(), options.replicate, 0);
  return shard;
}

}  // namespace

void EngineOptions::validate() const {
  const Strategy& row = find_strategy(strategy);
  if (replicate != 1 && row.name != "hsdp")
    config_error("mesh.replicate", "got {} with strategy {}, which shards over all ranks, expected 1; try hsdp",
                 replicate, row.name);
  if (persistent_below < 0)
    config_error("persistent_below", "got {} bytes, expected 0 or more; try 65536", persistent_below);
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
  // An odd factor: the ranks' seeds are far apart.
  if (options_.seed)
    at::manual_seed(*options_.seed + 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(transport_->rank()));
  model_ = std::make_unique<ShardedModel>(module_, *transport_, ledger_, shard_options(options_, *transport_));
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
  if (options_.buffers == Buffers::broadcast) broadcast_buffers(*module_, *transport_);
}

Engine::~Engine() = default;

void Engine::backward(const at::Tensor& loss) {
  try {
    loss.backward();
    model_->finish_backward();
  } catch (const std::exception& error) {
    model_->interrupt(error.what());
    throw;
  }
}

void Engine::failed_in_forward(const std::exception& error) {
  model_->interrupt(error.what());
  if (const auto* torchs = dynamic_cast<const c10::Error*>(&error)) explain_write(*torchs, &model_->root_unit());
}

StepReport Engine::step(double lr_scale, std::span<const double> shared_values) {
  const at::NoGradGuard no_grad;
  StepReport report;
  try {
    model_->recover();
    model_->finish_backward();
    // This exchange is also what keeps an owner from overwriting parameters that a peer's backward still reads.
    report.grad_norm = global_norm(shared_values, report.shared);
  } catch (const std::exception& error) {
    model_->interrupt(error.what());
    throw;
  }
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

// The same bits for any number of ranks: see add_squares.
double Engine::global_norm(std::span<const double> shared_values, std::vector<double>& shared) {
  ExactSum squares;
  for (size_t g = 0; g < state_.size(); ++g) {
    if (!model_->groups()[g]->trainable()) continue;
    if (!model_->has_gradients(g)) model_->store().gradient(g).zero_();
    // Where ranks hold the same rows, those of the first replica count.
    if (holds_first_copy())
      add_squares(model_->groups()[g]->layout(), model_->store().index(), own_gradient(g), squares);
  }
  const auto digits = squares.digits();
  std::vector<double> mine(digits.begin(), digits.end());
  mine.push_back(model_->schedule_hash());
  mine.push_back(static_cast<double>(steps_));
  mine.insert(mine.end(), shared_values.begin(), shared_values.end());
  const std::vector<double> all = transport_->exchange(mine);
  check_ranks_agree(all, digits.size(), mine.size());
  ExactSum sum;
  for (auto rank = all.begin(); rank != all.end(); rank += static_cast<int64_t>(mine.size())) {
    sum.add_digits({rank, digits.size()});
    const auto first = rank + static_cast<int64_t>(digits.size() + 2);
    shared.insert(shared.end(), first, first + static_cast<int64_t>(shared_values.size()));
  }
  return std::sqrt(sum.value());
}

// `all`: rank by rank `each` values, of which the two at `at` are the schedule's hash and the number of steps done.
void Engine::check_ranks_agree(std::span<const double> all, size_t at, size_t each) {
  std::vector<double> hashes;
  for (size_t r = 0; r * each < all.size(); ++r) {
    hashes.push_back(all[r * each + at]);
    const auto steps = static_cast<int64_t>(all[r * each + at + 1]);
    if (steps != steps_)
      fault("step",
            "got rank {} in step {} and this rank in step {}, expected all ranks in the same one: a fault has "
            "parted them; try to go on from the last checkpoint",
            r, steps + 1, steps_ + 1);
  }
  model_->compare_schedules(hashes);
}

bool Engine::holds_first_copy() const { return transport_->rank() < model_->groups().front()->layout().ranks; }

at::Tensor Engine::own_gradient(size_t g) const {
  const int64_t piece = model_->groups()[g]->layout().shard_elements;
  const int64_t index = model_->store().owned().size() == 1 ? 0 : model_->store().index();
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
      rule_->update_rounding(update, *hyper_[g][p], {steps_, lr_scale, gradient_scale});
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
  const int me = model_->store().index();
  for (size_t g = 0; g < state_.size(); ++g)
    for (size_t p = 0; p < model_->groups()[g]->parameters().size(); ++p)
      views.push_back(view_of(g, p, me, model_->store().rows(g, p, me)));
  return views;
}

std::vector<ShardView> Engine::gradient_shards() {
  std::vector<ShardView> views;
  const int me = model_->store().index();
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
