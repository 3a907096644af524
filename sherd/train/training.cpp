#include "sherd/train/training.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "sherd/base/error.h"
#include "sherd/checkpoint/hugging_face.h"
#include "sherd/comm/connect.h"
#include "sherd/data/batch.h"
#include "sherd/data/step_plan.h"
#include "sherd/engine/save_model.h"
#include "sherd/memory/process_memory.h"
#include "sherd/train/loss_curve.h"
#include "sherd/train/run_folder.h"
#include "sherd/train/training_setup.h"

namespace sherd {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Training {
 public:
  Training(const TrainConfig& config, const TrainingHooks& hooks, const World& world, TokenScan scan)
      : config_(config), hooks_(hooks), setup_(prepare_training(config, world.size, scan)), world_(world) {
    if (world.rank == 0) folder_.emplace(config.output, to_json(config));
    // "cuda" without a number is the device of this rank on its host.
    at::Device& device = setup_.engine.device;
    if (!device.is_cpu() && !device.has_index()) device.set_index(static_cast<c10::DeviceIndex>(world.local_rank));
    setup_.model.device = device.str();
    // Shared memory of the host is of no use to parameters elsewhere.
    const bool on_cpu = device.is_cpu();
    transport_ = connect(world, config.transport == "auto" && !on_cpu ? "gloo" : config.transport);
  }

  TrainingResult run() {
    try {
      return train();
    } catch (const std::exception& error) {
      transport_->abort(error.what());
      throw;
    }
  }

 private:
  TrainingResult train() {
    const bool one_round = config_.batch.reduce == ReducePoint::last || plan(*setup_.train, 0).size() == 1;
    setup_.engine.summing = one_round ? Summing::in_place : Summing::apart;
    model_ = unit_llama(setup_.model);
    engine_.emplace(model_, transport_, setup_.engine, setup_.source);
    say(fmt::format("{} parameters, strategy {}, {} rank{}, transport {}", setup_.model.parameters(), config_.strategy,
                    world_.size, world_.size == 1 ? "" : "s", transport_->name()));

    for (const auto& warning : setup_.warnings) say(warning);
    for (const auto& warning : engine_->warnings()) say(warning);
    read_memory(0);

    TrainingResult result;
    result.folder = config_.output;
    for (int64_t step = 0; step < config_.steps && result.end == TrainingResult::End::finished; ++step) {
      StepMetrics metrics;
      if (one_step(step, metrics)) result.end = TrainingResult::End::stopped;
      if (config_.eval_every > 0 && (metrics.step % config_.eval_every == 0 || metrics.step == config_.steps))
        metrics.validation_loss = evaluate();
      record(metrics);
      read_memory(metrics.step);
      result.steps = metrics.step;
      result.final_loss = metrics.loss;
    }
    finish();
    return result;
  }

  /// True when any rank wants to stop.
  bool one_step(int64_t step, StepMetrics& metrics) {
    const auto start = Clock::now();
    metrics.step = step + 1;
    metrics.tokens = count_rows(*setup_.train, step) * setup_.train->options().context;
    metrics.targets = count_targets(*setup_.data.train, *setup_.train, step);
    if (metrics.targets == 0) say(fmt::format("warning: step {} has no targets: its loss is 0", metrics.step));

    double loss = 0;
    const std::vector<MicroBatch> micros = plan(*setup_.train, step);
    for (size_t i = 0; i < micros.size(); ++i) {
      const bool reduce = i + 1 == micros.size() || config_.batch.reduce == ReducePoint::every;
      engine_->set_gradients(reduce ? Gradients::reduce : Gradients::hold);
      const at::Tensor value = loss_of(micros[i], *setup_.data.train, *setup_.train, step, metrics.targets);
      engine_->backward(value);
      loss += value.item<double>();
    }
    const bool stop = hooks_.stop_requested && hooks_.stop_requested();
    const double shared[] = {loss, stop ? 1.0 : 0.0, memory_bytes_};
    const StepReport report = engine_->step(1.0, shared);
    metrics.grad_norm = report.grad_norm;
    metrics.lr = config_.optimizer.values.lr * report.lr_scale;
    bool any_stop = false;
    double memory_bytes = 0;
    for (size_t r = 0; r < static_cast<size_t>(world_.size); ++r) {
      metrics.loss += report.shared[3 * r];
      any_stop = any_stop || report.shared[3 * r + 1] > 0;
      memory_bytes += report.shared[3 * r + 2];
    }
    if (setup_.engine.loss_scale) metrics.loss_scale = report.loss_scale;
    metrics.skipped_steps = engine_->skipped_steps();
    if (!std::isfinite(metrics.loss) && report.update == StepReport::Update::made)
      fault("train",
            "got loss {} in step {}, expected a finite number; try a lower optimizer.lr, a longer schedule.warmup or "
            "clip 1.0",
            metrics.loss, metrics.step);
    metrics.memory_mib = memory_bytes / (1 << 20);
    metrics.step_s = seconds_since(start);
    metrics.tokens_per_s = static_cast<double>(metrics.tokens) / metrics.step_s;
    return any_stop;
  }

  double evaluate() {
    const at::NoGradGuard no_grad;
    double loss = 0;
    const int64_t targets = count_targets(*setup_.data.validation, *setup_.validation, 0);
    for (const MicroBatch& micro : plan(*setup_.validation, 0))
      loss += loss_of(micro, *setup_.data.validation, *setup_.validation, 0, targets).item<double>();
    double sum = 0;
    for (const double part : transport_->exchange({&loss, 1})) sum += part;
    return sum;
  }

  std::vector<MicroBatch> plan(const Sampler& sampler, int64_t step) const {
    return plan_step(sampler, step, config_.batch.micro, world_.rank, world_.size);
  }

  /// This micro-batch's part of a loss that is the mean over `targets`.
  at::Tensor loss_of(const MicroBatch& micro, const TokenSource& source, const Sampler& sampler, int64_t step,
                     int64_t targets) {
    const Batch batch = read_batch(source, sampler, step, micro.accumulation, micro.rows);
    const at::Tensor inputs = batch.tokens.to(setup_.engine.device), labels = batch.targets.to(setup_.engine.device);
    const double scale = micro.counts && targets > 0 ? 1.0 / static_cast<double>(targets) : 0.0;
    return engine_->forward([&] { return model_->loss(inputs, labels, scale); });
  }

  /// Reads this process's proportional memory, between steps: after the first three, then at most once in five seconds.
  void read_memory(int64_t steps) {
    if (steps > 3 && seconds_since(memory_read_) < 5) return;
    memory_bytes_ = static_cast<double>(proportional_memory());
    memory_read_ = Clock::now();
  }

  void record(const StepMetrics& metrics) {
    if (world_.rank != 0) return;
    nlohmann::ordered_json line = {{"step", metrics.step},
                                   {"loss", metrics.loss},
                                   {"grad_norm", metrics.grad_norm},
                                   {"lr", metrics.lr},
                                   {"tokens_per_s", metrics.tokens_per_s},
                                   {"step_s", metrics.step_s},
                                   {"memory_mib", metrics.memory_mib},
                                   {"targets", metrics.targets}};
    if (metrics.validation_loss) line["validation_loss"] = *metrics.validation_loss;
    if (metrics.loss_scale)
      line.update({{"loss_scale", *metrics.loss_scale}, {"skipped_steps", metrics.skipped_steps}});
    for (int k = 0; k < kMemoryKinds; ++k) {
      const auto kind = static_cast<MemoryKind>(k);
      line["rank0_mib"][std::string(name_of(kind))] = static_cast<double>(engine_->ledger().total(kind)) / (1 << 20);
    }
    folder_->append(line);
    train_curve_.push_back({metrics.step, metrics.loss});
    if (metrics.validation_loss) validation_curve_.push_back({metrics.step, *metrics.validation_loss});
    if (hooks_.on_step) hooks_.on_step(metrics);
  }

  void finish() {
    if (folder_) {
      write_hugging_face_config(folder_->begin_model(), setup_.model.to_hugging_face());
      folder_->write_loss_curve(loss_curve_svg(train_curve_, validation_curve_, config_.output));
    }
    barrier(*transport_);
    save_weights(*engine_, RunFolder::unfinished_model_path(config_.output));
    if (folder_) folder_->finish_model();
    barrier(*transport_);
  }

  void say(const std::string& text) const {
    if (world_.rank == 0 && hooks_.on_message) hooks_.on_message(text);
  }

  TrainConfig config_;
  TrainingHooks hooks_;
  TrainingSetup setup_;
  World world_;
  std::optional<RunFolder> folder_;
  std::shared_ptr<Transport> transport_;
  std::shared_ptr<LlamaImpl> model_;
  std::optional<Engine> engine_;
  std::vector<CurvePoint> train_curve_, validation_curve_;
  double memory_bytes_ = 0;
  Clock::time_point memory_read_;
};

}  // namespace

void validate_training(const TrainConfig& config, int world) {
  prepare_training(config, world, TokenScan::read);
  RunFolder::check(config.output);
}

TrainingResult run_training(const TrainConfig& config, const TrainingHooks& hooks, Validated validated) {
  const auto timeout = std::chrono::milliseconds(static_cast<int64_t>(config.timeout_s * 1000));
  const TokenScan scan = validated == Validated::already ? TokenScan::trust : TokenScan::read;
  return Training(config, hooks, join_world(timeout), scan).run();
}

}  // namespace sherd
