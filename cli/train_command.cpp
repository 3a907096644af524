#include "cli/train_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cli/heap_settings.h"
#include "cli/launcher.h"
#include "cli/progress.h"
#include "cli/stop_signal.h"
#include "sherd/base/error.h"
#include "sherd/comm/launch_environment.h"
#include "sherd/config/settings_text.h"
#include "sherd/config/train_config.h"
#include "sherd/train/training.h"

namespace sherd {
namespace {

constexpr int kInterrupted = 130;

TrainConfig effective_config(const TrainOptions& options) {
  std::vector<std::string> overrides = options.overrides;
  if (options.strategy) overrides.push_back("strategy=" + nlohmann::json(*options.strategy).dump());
  if (options.transport) overrides.push_back("transport=" + nlohmann::json(*options.transport).dump());
  return load_train_config(options.config, overrides);
}

/// Prints the table of settings, and ends the parsing.
void print_settings(const std::string& form) {
  fmt::print("{}", form == "markdown" ? settings_markdown() : form == "schema" ? settings_schema() : settings_help());
  throw CLI::Success();
}

/// Trains in this process, as rank `rank` of however many.
int train(const TrainConfig& config, int rank) {
  watch_stop_signals(started_by_launcher() ? SecondSignal::counts : SecondSignal::ends_process);
  Progress progress(config.steps, progress_output());
  TrainingHooks hooks;
  hooks.on_step = [&](const StepMetrics& metrics) { progress.step(metrics); };
  hooks.on_message = [&](std::string_view text) { progress.message(text); };
  hooks.stop_requested = [] { return stop_requests() > 0; };
  const TrainingResult result = run_training(config, hooks, Validated::already);
  progress.finish();
  const bool stopped = result.end == TrainingResult::End::stopped;
  if (stopped && result.steps == 0) {
    if (rank == 0) progress.message("stopped before the first step; nothing was saved");
    return kInterrupted;
  }
  if (rank == 0) {
    progress.message(fmt::format("{} {} steps, loss {:.4f}; weights in {}/model",
                                 stopped ? "stopped after" : "finished", result.steps, result.final_loss,
                                 result.folder));
  }
  return 0;
}

}  // namespace

CLI::App* add_train_command(CLI::App& app, TrainOptions& options) {
  CLI::App* command = app.add_subcommand("train", "Train a model");
  command->add_option("config", options.config, "The configuration, a JSON file")->required();
  command->add_option("--strategy", options.strategy, "The key \"strategy\": " + setting_values("strategy"));
  command->add_option("--transport", options.transport, "The key \"transport\": " + setting_values("transport"));
  command
      ->add_option("--ranks", options.ranks,
                   "Start so many ranks on this host (without it: those of torchrun, mpirun or srun, or one)")
      ->check(CLI::Range(1, 4096));
  command->add_option("--set", options.overrides, "Set a key of the configuration: --set optimizer.lr=1e-3")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option_function<std::string>("--help-config", print_settings, "Say what CONFIG may hold, and end")
      ->check(CLI::IsMember({"text", "markdown", "schema"}))
      ->expected(0, 1)
      ->default_str("text");
  return command;
}

int run_train_command(const TrainOptions& options, char** argv) {
  const TrainConfig config = effective_config(options);
  if (started_by_launcher()) return train(config, launched_by_environment().value().rank);
  const auto place = launched_by_environment();
  const int ranks = options.ranks.value_or(1);
  const bool trains_itself = place || ranks == 1;
  if (set_heap_environment() == HeapSettings::changed && trains_itself) restart_program(argv);
  if (place) {
    if (options.ranks && *options.ranks != place->size) {
      config_error("--ranks",
                   "got {}, expected {} as the environment says; try without --ranks under torchrun, mpirun or srun",
                   *options.ranks, place->size);
    }
    if (place->rank == 0) validate_training(config, place->size);
    return train(config, place->rank);
  }
  validate_training(config, ranks);
  return ranks == 1 ? train(config, 0) : launch_ranks(ranks, argv);
}

}  // namespace sherd
