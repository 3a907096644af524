// `sherd sample RUN --prompt TEXT`: lets a trained model write.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace sherd {

struct SampleOptions {
  std::string run;                    // a run folder, or a Hugging Face folder
  std::optional<std::string> prompt;  // for models whose tokens are bytes
  std::vector<int64_t> tokens;        // for others
  int64_t max_tokens = 200;
  double temperature = 0.8;  // 0: always the likeliest token
  int64_t top_k = 40;        // 0: all tokens
  uint64_t seed = 0;
};

/// Declares the subcommand; parsing fills `options`.
CLI::App* add_sample_command(CLI::App& app, SampleOptions& options);

/// Writes the prompt and what follows to stdout, and returns the exit code. Runs the whole model over the last
/// `context` tokens for each new one. Throws ConfigError.
int run_sample_command(const SampleOptions& options);

}  // namespace sherd
