// `sherd train CONFIG.json`: as one process, as one rank of torchrun's, or as the launcher of N ranks.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace sherd {

struct TrainOptions {
  std::string config;
  std::optional<std::string> strategy, transport;  // shorthands for the keys of the configuration
  std::optional<int> ranks;                        // absent: torchrun's, or one
  std::vector<std::string> overrides;              // "a.b=c"
};

/// Declares the subcommand; parsing fills `options`.
CLI::App* add_train_command(CLI::App& app, TrainOptions& options);

/// Trains and returns the exit code; `argv` is what ranks are started with. Throws ConfigError before any rank
/// starts, FaultError when something breaks later.
int run_train_command(const TrainOptions& options, char** argv);

}  // namespace sherd
