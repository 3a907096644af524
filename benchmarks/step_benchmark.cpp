// What a sharded training step costs beside compute alone. Ranks of one thread, each pinned to a core, take turns with
//
//   compute        the plain model on the same rows: forward and backward, no peer, no optimizer, gradients dropped
//   step           the same work under sherd, and its exchange, optimizer and publication
//   copy, reduce, norm, optimizer   parts of a step alone, all ranks at once: gradients into the slots; the
//                  reduce-scatter of all groups; the sums of squares for clipping; the update of the rows owned
//
// so that (step - compute) / (reduce + optimizer) says what is lost between them. The slowest rank counts, medians are
// reported; differences are medians of the differences of neighbours. A second table says where step - compute goes:
// how much longer forward and backward take rank 0 than the plain model's, and what Engine::step() takes.
//
//   bench_step [--models small,base] [--rows 4,16] [--strategies zero3,zero2,zero1,ddp] [--ranks N] [--rounds R]
#include <ATen/ops/randint.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "benchmarks/pinned_ranks.h"
#include "sherd/comm/connect.h"
#include "sherd/engine/engine.h"
#include "sherd/memory/deferred.h"
#include "sherd/models/initializer.h"
#include "sherd/shard/reduction.h"
#include "sherd/train/training_setup.h"

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

using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

/// What this rank took for forward and backward, run by run.
struct Phases {
  std::vector<double> forward, backward;
  void add(Clock::time_point start, Clock::time_point middle, Clock::time_point end) {
    forward.push_back(seconds(start, middle));
    backward.push_back(seconds(middle, end));
  }
};

/// The median of a - b, of runs that were neighbours; the first of each was for warm-up.
double median_more(const std::vector<double>& a, const std::vector<double>& b, size_t warmup) {
  std::vector<double> differences;
  for (size_t i = warmup; i < a.size(); ++i) differences.push_back(a[i] - b[i]);
  return median(differences);
}

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
    const auto start = Clock::now();
    model_->zero_grad(/*set_to_none=*/true);
    const at::Tensor loss = model_->loss(rows.tokens, rows.targets, rows.scale);
    const auto middle = Clock::now();
    loss.backward();
    loss.item<double>();
    phases.add(start, middle, Clock::now());
  }

  Phases phases;

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
    for (auto& shard : engine_.shards()) {
      if (shard.values.numel() == 0) continue;
      parameters_.push_back(shard.values);
      for (auto& moment : moments_) moment.push_back(sherd::allocate(shard.values.numel(), at::kCPU));
    }
  }

  void step(const Rows& rows) {
    const auto start = Clock::now();
    const at::Tensor loss = engine_.forward([&] { return model_->loss(rows.tokens, rows.targets, rows.scale); });
    const auto middle = Clock::now();
    engine_.backward(loss);
    loss.item<double>();
    const auto end = Clock::now();
    phases.add(start, middle, end);
    engine_.step();
    updates.push_back(seconds(end, Clock::now()));
  }

  Phases phases;
  std::vector<double> updates;  // what Engine::step() took

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
      const auto start = Clock::now();
      copy(gradients, g);
      copy_s += seconds(start, Clock::now());
      store().contribute(g);
      store().reduce(g, sherd::Round::first, sherd::Patience::wait);
    }
  }

  void norm() {
    sherd::ExactSum sum;
    for (size_t g = 0; g < groups(); ++g)
      sherd::add_squares(engine_.sharded_model().groups()[g]->layout(), store().index(), store().gradient(g), sum);
  }

  /// With a learning rate of nothing: parameters stay.
  void optimize() {
    const auto gradients = engine_.gradient_shards();
    size_t p = 0;
    for (const auto& gradient : gradients) {
      if (gradient.values.numel() == 0) continue;
      rule_->update({parameters_[p], gradient.values, {moments_[0][p], moments_[1][p]}}, {},
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
  std::vector<at::Tensor> parameters_, moments_[2];
};

/// Rows of the two tables that rank 0 prints.
struct Tables {
  std::string steps, parts;
};

void measure(const Options& options, const std::shared_ptr<sherd::Transport>& transport, const std::string& preset,
             int64_t global_rows, Tables& tables) {
  const auto config = sherd::LlamaConfig::preset(preset);
  const Rows rows(config, global_rows, options.ranks);
  for (const auto& strategy : options.strategies) {
    PlainModel plain(config);
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
    const auto times = take_turns(*transport, contestants, options.rounds);
    if (transport->rank() != 0) continue;
    const double compute = median(times[0]), more = median_more(times[1], times[0], 0), reduce = median(times[3]),
                 optimizer = median(times[5]);
    const std::string what = fmt::format("| {} | {} | {} ", preset, global_rows * config.context, strategy);
    tables.steps += fmt::format("{}| {:.3f} | {:.3f} | {:.0f} | {:.0f} | {:.0f} | {:.2f} | {:.3f} |\n", what, compute,
                                median(times[1]), 1e3 * more, 1e3 * reduce, 1e3 * optimizer,
                                more / (reduce + optimizer), (compute + more) / compute);
    tables.parts += fmt::format("{}| {:.0f} | {:.0f} | {:.0f} | {:.0f} | {:.0f} |\n", what,
                                1e3 * median_more(training.phases.forward, plain.phases.forward, 1),
                                1e3 * median_more(training.phases.backward, plain.phases.backward, 1),
                                1e3 * median(training.updates), 1e3 * median(copies), 1e3 * median(times[4]));
    std::fprintf(stderr, "%sdone\n", what.c_str());
  }
}

void run_rank(const Options& options, const sherd::World& world) {
  const auto transport = sherd::connect(world, "host");
  Tables tables;
  for (const auto& model : options.models)
    for (const int64_t rows : options.rows) measure(options, transport, model, rows, tables);
  if (world.rank != 0) return;
  std::printf(
      "| model | tokens | strategy | compute, s | step, s | step - compute, ms | reduce, ms | optimizer, ms "
      "| (step - compute) / (reduce + optimizer) | step / compute |\n|---|---|---|---|---|---|---|---|---|---|\n%s\n"
      "| model | tokens | strategy | forward - plain, ms | backward - plain, ms | update, ms | copy alone, ms "
      "| norm alone, ms |\n|---|---|---|---|---|---|---|---|\n%s",
      tables.steps.c_str(), tables.parts.c_str());
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
  std::printf("%d ranks of one thread, %d cores, medians of %d rounds\n\n", options.ranks, sherd::bench::core_count(),
              options.rounds);
  return sherd::bench::run_pinned_ranks(options.ranks, [&](const sherd::World& world) { run_rank(options, world); });
}
