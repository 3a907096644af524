// The engine: a model, sharded by a strategy over a transport, and its optimizer. A training step is
//
//   for each micro-batch:
//     at::Tensor loss = engine.forward([&] { return model->loss(...); });
//     engine.backward(loss);
//   StepReport report = engine.step(lr_scale);
//
// Gradients are summed over ranks and micro-batches, never averaged: scale the loss by 1 / (targets of the whole global
// batch). All ranks make the same calls in the same order. One engine belongs to one thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sherd/base/parameter_source.h"
#include "sherd/comm/transport.h"
#include "sherd/engine/engine_options.h"
#include "sherd/memory/ledger.h"
#include "sherd/recompute/tensors_in.h"
#include "sherd/shard/sharded_model.h"
#include "sherd/step/step.h"

namespace sherd {

class Engine {
 public:
  /// Takes the model over and fills its parameters from `source`, rows by rows. Collective. Throws ConfigError.
  Engine(std::shared_ptr<torch::nn::Module> model, std::shared_ptr<Transport> transport, EngineOptions options,
         const ParameterSource& source);
  ~Engine();

  /// Runs the whole model: `run` calls it and returns tensors. The root's parameters are there meanwhile.
  template <class Run>
  auto forward(Run&& run) {
    try {
      ForwardScope scope(&model_->root_unit(), {});
      auto result = run();
      scope.finish(tensors_in(result));
      return result;
    } catch (const std::exception& error) {
      failed_in_forward(error);
      throw;
    }
  }

  /// (loss * loss_scale()).backward(), and the reduction of what it made. An exception here, in forward() or in step()
  /// before it updates anything reaches all ranks: their next wait throws FaultError with the cause. Then all gradients
  /// of the step are dropped, parameters and optimizer are as after the last step, and training can go on with the next
  /// forward().
  void backward(const at::Tensor& loss);
  /// Whether the following backwards reduce their gradients or hold them for a later one.
  void set_gradients(Gradients gradients) { model_->set_gradients(gradients); }

  /// Clips, updates this rank's rows with the schedule's learning rate times `lr_scale` and publishes them; or skips
  /// the update, on all ranks, where gradients overflowed under a loss scale: then the schedule stays where it is.
  /// `shared_values` travel along (as many on every rank). Throws FaultError for an overflow at the smallest scale, and
  /// without a scale for gradients that are not finite (NonFiniteGradients::stop).
  StepReport step(double lr_scale = 1.0, std::span<const double> shared_values = {});

  /// This rank's rows of all parameters, in the order of the module tree.
  std::vector<OwnedShard> shards();
  /// The same as fp32 values, of their masters where they have some: copies, or views. What a model is saved from.
  std::vector<OwnedShard> master_shards();
  /// The sum of all reduced gradients' rows that this rank owns, laid out as shards(), times loss_scale(); valid until
  /// the next backward.
  std::vector<OwnedShard> gradient_shards();
  /// Names under which parameters appear again in the module tree (tied), with the name they are stored under.
  std::vector<std::pair<std::string, std::string>> aliases() const;
  /// The model's registered buffers by name: whole on every rank, and each rank's own.
  std::vector<std::pair<std::string, at::Tensor>> buffers() const;

  /// What is allowed, but perhaps not meant.
  const std::vector<std::string>& warnings() const { return warnings_; }
  /// True where this rank's shards() are not the same as those of a rank before it: these ranks save the model.
  bool holds_first_copy() const { return step_->shards().holds_first_copy(); }

  Ledger& ledger() { return ledger_; }
  Transport& transport() { return *transport_; }
  ShardedModel& sharded_model() { return *model_; }
  int64_t steps() const { return step_->judge().made(); }  // updates made
  int64_t skipped_steps() const { return step_->judge().skipped(); }
  double loss_scale() const { return step_->judge().loss_scale(); }

 private:
  void failed_in_forward(const std::exception& error);
  std::vector<OwnedShard> shards_with(const std::function<at::Tensor(size_t i)>& values) const;

  std::shared_ptr<torch::nn::Module> module_;
  std::shared_ptr<Transport> transport_;
  EngineOptions options_;
  Ledger ledger_;
  std::unique_ptr<ShardedModel> model_;
  std::optional<Step> step_;
  std::vector<std::string> warnings_;
};

}  // namespace sherd
