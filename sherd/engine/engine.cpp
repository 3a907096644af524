#include "sherd/engine/engine.h"

#include <algorithm>
#include <cmath>

#include "sherd/base/error.h"
#include "sherd/engine/broadcast_buffers.h"
#include "sherd/engine/muon_step.h"
#include "sherd/engine/non_finite.h"
#include "sherd/models/deferred.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/reduction.h"

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
  const Strategy& row = find_strategy(strategy);
  if (replicate != 1 && row.name != "hsdp")
    config_error("mesh.replicate", "got {} with strategy {}, which shards over all ranks, expected 1; try hsdp",
                 replicate, row.name);
  if (persistent_below < 0)
    config_error("persistent_below", "got {} bytes, expected 0 or more; try 65536", persistent_below);
  if (clip && !(*clip > 0)) config_error("clip", "got {}, expected a number above 0, or null; try 1.0", *clip);
  update.validate();
  optimizer.validate();
  if (loss_scale) loss_scale->validate();
  if (muon) muon->validate();
  if (moments == MomentType::eight_bits && (update.kind == UpdateRuleOptions::Kind::sgd || !device.is_cpu()))
    config_error("optimizer.type", "got 8-bit moments {}, expected Adam or AdamW on the CPU; try fp32 moments",
                 device.is_cpu() ? "with sgd" : "on " + device.str());
}

Engine::Engine(std::shared_ptr<torch::nn::Module> model, std::shared_ptr<Transport> transport, EngineOptions options,
               const ParameterSource& source)
    : module_(std::move(model)),
      transport_(std::move(transport)),
      options_(std::move(options)),
      rule_(make_update_rule(options_.update)) {
  options_.validate();
  if (options_.loss_scale) scaler_.emplace(*options_.loss_scale);
  // An odd factor: the ranks' seeds are far apart.
  if (options_.seed)
    at::manual_seed(*options_.seed + 0x9e3779b97f4a7c15ULL * static_cast<uint64_t>(transport_->rank()));
  if (options_.precision) convert_parameters(*module_, *options_.precision);
  model_ = std::make_unique<ShardedModel>(module_, *transport_, ledger_, shard_options(options_, *transport_));
  if (options_.muon) muon_.emplace(*options_.muon);
  state_.emplace(*rule_, muon_ ? &*muon_ : nullptr, *model_, ledger_, options_);
  warnings_ = model_->warnings();
  warnings_.insert(warnings_.end(), state_->notes().begin(), state_->notes().end());
  model_->fill(source, [this](size_t g, size_t p, size_t o, const at::Tensor& values) {
    set_values(state_->piece(g, p, o), values);
  });
  if (options_.buffers == Buffers::broadcast) broadcast_buffers(*module_, *transport_);
}

Engine::~Engine() = default;

void Engine::backward(const at::Tensor& loss) {
  try {
    model_->expect_backward({loss});
    (scaler_ ? loss * scaler_->scale() : loss).backward();
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
  const Said said(*model_, "step");
  StepReport report;
  try {
    model_->recover();
    model_->finish_backward();
    model_->check_roles();
    // This exchange is also what keeps an owner from overwriting parameters that a peer's backward still reads.
    const double scaled_norm = global_norm(shared_values, report.shared);
    report.loss_scale = loss_scale();
    report.grad_norm = scaled_norm / report.loss_scale;
    report.update = check_gradients(scaled_norm);
  } catch (const std::exception& error) {
    model_->interrupt(error.what());
    throw;
  }
  if (report.update == StepReport::Update::skipped) {
    ++skipped_;
    model_->publish();
    return report;
  }
  double gradient_scale = 1 / report.loss_scale;
  if (options_.clip) gradient_scale *= std::min(1.0, *options_.clip / (report.grad_norm + 1e-6));
  ++steps_;
  try {
    update_all({steps_, lr_scale, gradient_scale});
    model_->publish();
  } catch (const std::exception& error) {
    transport_->abort(error.what());
    fault("step", "the update of step {} failed half-way: {}; try to go on from the last checkpoint", steps_,
          error.what());
  }
  return report;
}

// The norm is the same on all ranks, and finite if all gradients are: no other exchange is needed to agree.
StepReport::Update Engine::check_gradients(double scaled_norm) {
  using Update = StepReport::Update;
  const bool finite = std::isfinite(scaled_norm);
  if (scaler_) {
    const double scale = scaler_->scale();
    if (!scaler_->update(finite ? LossScaler::Step::made : LossScaler::Step::overflowed))
      fault("loss_scale",
            "got gradients that overflow at the smallest loss scale, {}, in step {}: the first was {}; expected finite "
            "ones; try a lower learning rate, clip 1.0, or bf16",
            scale, attempts() + 1, origin_of_non_finite(*model_, *transport_));
    return finite ? Update::made : Update::skipped;
  }
  if (!finite && options_.non_finite == NonFiniteGradients::stop)
    fault("step",
          "got a gradient norm of {} in step {}: the first that was not finite was {}; expected finite numbers; try a "
          "lower learning rate, a longer warm-up, or clip 1.0",
          scaled_norm, attempts() + 1, origin_of_non_finite(*model_, *transport_));
  return Update::made;
}

// The same bits for any number of ranks: see add_squares.
double Engine::global_norm(std::span<const double> shared_values, std::vector<double>& shared) {
  ExactSum squares;
  for (size_t g = 0; g < model_->groups().size(); ++g) {
    if (!model_->groups()[g]->trainable()) continue;
    if (!model_->has_gradients(g)) model_->store().gradient(g).zero_();
    // Where ranks hold the same rows, those of the first replica count.
    if (holds_first_copy())
      add_squares(model_->groups()[g]->gradient_layout(), model_->store().index(), own_gradient(g), squares);
  }
  const auto digits = squares.digits();
  std::vector<double> mine(digits.begin(), digits.end());
  mine.push_back(model_->schedule_hash());
  mine.push_back(static_cast<double>(attempts()));
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
    if (steps != attempts())
      fault("step",
            "got rank {} in step {} and this rank in step {}, expected all ranks in the same one: a fault has "
            "parted them; try to go on from the last checkpoint",
            r, steps + 1, attempts() + 1);
  }
  model_->compare_schedules(hashes);
}

bool Engine::holds_first_copy() const { return transport_->rank() < model_->groups().front()->layout().ranks; }

size_t Engine::own_place() const {
  return static_cast<size_t>(model_->store().owned().size() == 1 ? 0 : model_->store().index());
}

at::Tensor Engine::own_gradient(size_t g) const {
  const int64_t piece = model_->groups()[g]->gradient_layout().shard_elements;
  return model_->store().gradient(g).narrow(0, static_cast<int64_t>(own_place()) * piece, piece);
}

UpdatePiece Engine::piece_with_gradient(size_t g, size_t p, size_t o) {
  UpdatePiece piece = state_->piece(g, p, o);
  piece.gradient = model_->gradient_rows(g, p, o);
  return piece;
}

void Engine::update_all(const UpdateTime& time) {
  const size_t owned = model_->store().owned().size();
  std::vector<MuonMatrix> matrices;
  for (size_t g = 0; g < model_->groups().size(); ++g) {
    const ParamGroup& group = *model_->groups()[g];
    for (size_t p = 0; group.trainable() && p < group.parameters().size(); ++p) {
      std::vector<UpdatePiece> pieces;
      for (size_t o = 0; o < owned; ++o) pieces.push_back(piece_with_gradient(g, p, o));
      if (state_->is_matrix(g, p)) {
        const auto& parameter = group.layout().parameters[p];
        matrices.push_back({parameter.rows, parameter.row_elements, std::move(pieces), state_->values(g, p)});
        continue;
      }
      for (const auto& piece : pieces)
        if (piece.parameter.numel() > 0) rule_->update(piece, state_->values(g, p), time);
    }
  }
  if (muon_)
    MuonStep(*muon_, model_->shard_transport(), ledger_, owned == 1 ? Spread::sharded : Spread::whole)
        .run(matrices, time);
}

ShardView Engine::view_of(size_t g, size_t p, int owner, at::Tensor values) const {
  const GroupLayout& layout = model_->groups()[g]->layout();
  const auto& parameter = layout.parameters[p];
  return {parameter.fqn, parameter.sizes, layout.rows(p, owner), parameter.row_elements, std::move(values)};
}

std::vector<ShardView> Engine::views_of(const std::function<at::Tensor(size_t, size_t)>& values) {
  std::vector<ShardView> views;
  for (size_t g = 0; g < model_->groups().size(); ++g)
    for (size_t p = 0; p < model_->groups()[g]->parameters().size(); ++p)
      views.push_back(view_of(g, p, model_->store().index(), values(g, p)));
  return views;
}

std::vector<ShardView> Engine::shards() {
  return views_of([this](size_t g, size_t p) { return model_->store().rows(g, p, model_->store().index()); });
}

std::vector<ShardView> Engine::master_shards() {
  return views_of([this](size_t g, size_t p) { return values_of(state_->piece(g, p, own_place())); });
}

std::vector<ShardView> Engine::gradient_shards() {
  std::vector<ShardView> views;
  for (size_t g = 0; g < model_->groups().size(); ++g)
    for (size_t p = 0; model_->groups()[g]->trainable() && p < model_->groups()[g]->parameters().size(); ++p)
      views.push_back(view_of(g, p, model_->store().index(), model_->gradient_rows(g, p, own_place())));
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
