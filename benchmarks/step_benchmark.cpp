// What a sharded training step costs beside compute alone. Ranks of one thread, each pinned to a core, take turns with
//
//   compute        the plain model on the same rows: forward and backward, no peer, no optimizer, gradients dropped
//   step           the same work under sherd, and its exchange, optimizer and publication
//   copy, reduce, norm, optimizer   parts of a step alone, all ranks at once: gradients into the slots; the
//                  reduce-scatter of all groups; the sums of squares for clipping; the update of the rows owned
//
// so that (step - compute) / (reduce + optimizer) says what is lost between them. The slowest rank counts, medians are
// reported; step - compute is the median of the differences of neighbours.
//
//   bench_step [--models small,base] [--rows 4,16] [--strategies zero3,zero2,zero1,ddp] [--ranks N] [--rounds R]
#include <ATen/ops/randint.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "benchmarks/pinned_ranks.h"
#include "sherd/comm/connect.h"
#include "sherd/engine/engine.h"
#include "sherd/engine/training_setup.h"
#include "sherd/models/deferred.h"
#include "sherd/models/initializer.h"
#include "sherd/shard/reduction.h"

namespace {

using sherd::bench::Contestant;
using sherd::bench::median;

struct Options {
  std::vector<std::string> models = {"small"};
  std::vector<int64_t> rows = {4};
  std::vector<std::string> strategies = {"zero3", "zero2", "zero1", "ddp"};
  int ranks = sherd::bench::core_count();
  int rounds = 7;
};

/// This rank's rows of a step over all ranks.
struct Rows {
  at::Tensor tokens, targets;
  double scale;

  Rows(const sherd::LlamaConfig& model, int64_t rows, int ranks) {
    const at::Tensor stream = at::randint(model.vocab, {rows / ranks, model.context + 1}, at::kLong);
    tokens = stream.narrow(1, 0, model.context).contiguous();
    targets = stream.narrow(1, 1, model.context).contiguous();
    scale = 1.0 / static_cast<double>(rows * model.context);
  }
};

/// The model without sherd's units; each rank has all of it to itself.
class PlainModel {
 public:
  explicit PlainModel(const sherd::LlamaConfig& config) : model_(std::make_shared<sherd::LlamaImpl>(config)) {
    sherd::materialize(*model_, sherd::seeded_normal(0));
  }

  void compute(const Rows& rows) {
    model_->zero_grad(/*set_to_none=*/true);
    const at::Tensor loss = model_->loss(rows.tokens, rows.targets, rows.scale);
    loss.backward();
    loss.item<double>();
  }

  std::map<std::string, at::Tensor> gradients() const {
    std::map<std::string, at::Tensor> all;
    for (const auto& item : model_->named_parameters()) all[item.key()] = item.value().grad();
    return all;
  }

 private:
  std::shared_ptr<sherd::LlamaImpl> model_;
};

/// The same model under a strategy, and the parts of its step one by one.
class ShardedTraining {
 public:
  ShardedTraining(const sherd::LlamaConfig& config, std::shared_ptr<sherd::Transport> transport,
                  const std::string& strategy)
      : model_(sherd::unit_llama(config)),
        engine_(model_, std::move(transport), options(strategy), sherd::seeded_normal(0)),
        rule_(sherd::make_update_rule({})) {
    for (auto& shard : engine_.shards())
      if (shard.values.numel() > 0) parameters_.push_back(shard.values);
    for (const auto& parameter : parameters_)
      for (size_t k = 0; k < rule_->state_names().size(); ++k)
        moments_.push_back(sherd::allocate(parameter.numel(), at::kCPU));
  }

  void step(const Rows& rows) {
    const at::Tensor loss = engine_.forward([&] { return model_->loss(rows.tokens, rows.targets, rows.scale); });
    engine_.backward(loss);
    loss.item<double>();
    engine_.step();
  }

  /// Group by group in the order of backward; one that keeps its slot is open until its round.
  void reduce() {
    for (size_t g = groups(); g-- > 0;) {
      store().open_slot(g);
      store().contribute(g);
      store().reduce(g, sherd::Round::first, sherd::Patience::wait);
    }
  }

  /// As the reducer does it, and the round that must follow.
  void copy_and_reduce(const std::map<std::string, at::Tensor>& gradients, double& copy_s) {
    copy_s = 0;
    for (size_t g = groups(); g-- > 0;) {
      const auto start = std::chrono::steady_clock::now();
      copy(gradients, g);
      copy_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      store().contribute(g);
      store().reduce(g, sherd::Round::first, sherd::Patience::wait);
    }
  }

  void norm() {
    for (size_t g = 0; g < groups(); ++g) sherd::sum_of_squares(store().gradient(g));
  }

  /// With a learning rate of nothing: parameters stay.
  void optimize() {
    const auto gradients = engine_.gradient_shards();
    size_t p = 0;
    for (const auto& gradient : gradients) {
      if (gradient.values.numel() == 0) continue;
      rule_->update({parameters_[p], gradient.values, {moments_[2 * p], moments_[2 * p + 1]}}, {},
                    {.step = 10, .lr_scale = 0, .gradient_scale = 1});
      ++p;
    }
  }

 private:
  static sherd::EngineOptions options(const std::string& strategy) {
    sherd::EngineOptions options;
    options.strategy = strategy;
    options.summing = sherd::Summing::in_place;  // as `sherd train` has it with one round a step
    options.optimizer = {.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
    return options;
  }

  sherd::Store& store() { return engine_.sharded_model().store(); }
  size_t groups() { return engine_.sharded_model().groups().size(); }

  void copy(const std::map<std::string, at::Tensor>& gradients, size_t g) {
    const sherd::GroupLayout& layout = engine_.sharded_model().groups()[g]->layout();
    const at::Tensor slot = store().open_slot(g);
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const auto& parameter = layout.parameters[p];
      const at::Tensor gradient = gradients.at(parameter.fqn).view(-1);
      for (int r = 0; r < layout.ranks; ++r) {
        const sherd::Rows rows = layout.rows(p, r);
        const int64_t count = rows.count * parameter.row_elements;
        slot.narrow(0, r * layout.shard_elements + parameter.shard_offset, count)
            .copy_(gradient.narrow(0, rows.first * parameter.row_elements, count));
      }
    }
  }

  std::shared_ptr<sherd::LlamaImpl> model_;
  sherd::Engine engine_;
  std::unique_ptr<sherd::UpdateRule> rule_;
  std::vector<at::Tensor> parameters_, moments_;
};

void measure(const Options& options, const std::shared_ptr<sherd::Transport>& transport, const std::string& preset,
             int64_t global_rows) {
  const auto config = sherd::LlamaConfig::preset(preset);
  const Rows rows(config, global_rows, options.ranks);
  PlainModel plain(config);
  for (const auto& strategy : options.strategies) {
    ShardedTraining training(config, transport, strategy);
    double copy_s = 0;
    std::vector<double> copies;
    const std::vector<Contestant> contestants = {
        {"compute", nullptr, [&] { plain.compute(rows); }},
        {"step", nullptr, [&] { training.step(rows); }},
        {"copy", nullptr,
         [&] {
           training.copy_and_reduce(plain.gradients(), copy_s);
           copies.push_back(copy_s);
         }},
        {"reduce", nullptr, [&] { training.reduce(); }},
        {"norm", nullptr, [&] { training.norm(); }},
        {"optimizer", nullptr, [&] { training.optimize(); }},
    };
    const auto seconds = take_turns(*transport, contestants, options.rounds);
    copies.erase(copies.begin());
    if (transport->rank() != 0) continue;
    std::vector<double> beyond;
    for (size_t round = 0; round < seconds[0].size(); ++round) beyond.push_back(seconds[1][round] - seconds[0][round]);
    const double compute = median(seconds[0]), more = median(beyond), reduce = median(seconds[3]),
                 optimizer = median(seconds[5]);
    std::printf("| %s | %ld | %s | %.3f | %.3f | %.0f | %.0f | %.0f | %.0f | %.0f | %.2f | %.3f |\n", preset.c_str(),
                global_rows * config.context, strategy.c_str(), compute, median(seconds[1]), 1e3 * more, 1e3 * reduce,
                1e3 * optimizer, 1e3 * median(copies), 1e3 * median(seconds[4]), more / (reduce + optimizer),
                (compute + more) / compute);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("A training step beside compute alone");
  app.add_option("--models", options.models, "Presets")->delimiter(',');
  app.add_option("--rows", options.rows, "Rows of a step over all ranks")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--strategies", options.strategies, "Of the engine")->delimiter(',');
  app.add_option("--ranks", options.ranks, "Processes, each pinned to a core")->check(CLI::Range(2, 256));
  app.add_option("--rounds", options.rounds, "Rounds that count")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  for (const int64_t rows : options.rows) {
    if (rows % options.ranks == 0) continue;
    std::fprintf(stderr, "bench_step: got %ld rows on %d ranks, expected as many on each; try a multiple\n", rows,
                 options.ranks);
    return 2;
  }
  try {
    std::printf("%d ranks of one thread, %d cores, medians of %d rounds\n\n", options.ranks, sherd::bench::core_count(),
                options.rounds);
    std::printf(
        "| model | tokens | strategy | compute, s | step, s | step - compute, ms | reduce, ms | optimizer, ms | copy, "
        "ms "
        "| norm, ms | (step - compute) / (reduce + optimizer) | step / compute |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    const double others = sherd::bench::run_pinned_ranks(options.ranks, [&](const sherd::World& world) {
      const auto transport = sherd::connect(world, "host");
      for (const auto& model : options.models)
        for (const int64_t rows : options.rows) measure(options, transport, model, rows);
    });
    std::printf("\nOther processes took %.2f cores.\n", others);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
