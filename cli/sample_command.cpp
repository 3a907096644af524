#include "cli/sample_command.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <random>
#include <span>

#include "cli/visible_text.h"
#include "sherd/base/error.h"
#include "sherd/checkpoint/hugging_face.h"
#include "sherd/memory/deferred.h"
#include "sherd/models/llama.h"

namespace sherd {
namespace {

constexpr int64_t kByteVocabulary = 256;

Llama load_model(const std::string& run) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(run)) {
    config_error("sample",
                 "there is no folder '{}', expected a run folder or a Hugging Face folder; try the \"output\" "
                 "of the training",
                 run);
  }
  const std::string model_folder = run + "/model";
  const std::string path = fs::exists(model_folder + "/config.json") ? model_folder : run;
  if (path == run && fs::exists(run + "/metrics.jsonl")) {
    config_error("sample",
                 "the run folder '{}' holds no model yet, expected '{}'; try again when the training has "
                 "ended",
                 run, model_folder);
  }
  const HuggingFaceFolder folder(path);
  Llama model(LlamaConfig::from_hugging_face(folder.config(), path + "/config.json"));
  std::vector<TensorShape> shapes;
  for (const auto& parameter : model->named_parameters()) {
    shapes.push_back({parameter.key(), parameter.value().sizes().vec()});
  }
  folder.check_shapes(shapes);
  materialize(*model, folder.source());
  return model;
}

/// The prompt as tokens of this model.
std::vector<int64_t> first_tokens(const SampleOptions& options, int64_t vocab) {
  if (!options.prompt) {
    for (const int64_t token : options.tokens) {
      if (token < 0 || token >= vocab) {
        config_error("--tokens", "got {}, expected tokens from 0 to {}; try those of the model's own tokenizer", token,
                     vocab - 1);
      }
    }
    return options.tokens;
  }
  if (vocab != kByteVocabulary) {
    config_error("--prompt", "got text for a model with a vocabulary of {}, expected {} (bytes); try --tokens 1,2,3",
                 vocab, kByteVocabulary);
  }
  if (options.prompt->empty()) config_error("--prompt", "got no text, expected at least one byte; try $'\\n'");
  std::vector<int64_t> tokens;
  for (const char byte : *options.prompt) tokens.push_back(static_cast<uint8_t>(byte));
  return tokens;
}

/// A model that reads a growing text once; where it is longer than the context, its last tokens anew for each more, for
/// what they were made of is no longer seen.
class Reader {
 public:
  explicit Reader(LlamaImpl& model) : model_(model), cache_(model.config()) {}

  /// Logits of what comes after these tokens, which begin with those of the last call.
  std::vector<float> next_logits(std::span<const int64_t> tokens) {
    size_t fresh = tokens.size() - static_cast<size_t>(cache_.length());
    if (fresh > static_cast<size_t>(cache_.room())) {
      cache_.clear();
      fresh = std::min(tokens.size(), static_cast<size_t>(cache_.room()));
    }
    const at::Tensor row = at::empty({1, static_cast<int64_t>(fresh)}, at::kLong);
    std::ranges::copy(tokens.last(fresh), row.mutable_data_ptr<int64_t>());
    const at::Tensor logits = model_.next_logits(row, cache_).to(at::kFloat).contiguous();
    const float* const values = logits.const_data_ptr<float>();
    return {values, values + logits.numel()};
  }

 private:
  LlamaImpl& model_;
  KeyValueCache cache_;  // of all tokens of the last call, or full
};

/// Draws from the `top_k` likeliest tokens; the same for the same seed on every machine.
int64_t choose(const std::vector<float>& logits, const SampleOptions& options, std::mt19937_64& random) {
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](int64_t a, int64_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  const size_t all = order.size();
  const size_t count = options.temperature == 0 ? 1 : options.top_k == 0 ? all : std::min<size_t>(all, options.top_k);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), likelier);
  if (count == 1) return order.front();
  std::vector<double> sums(count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sums[i] = sum += std::exp((logits[order[i]] - logits[order.front()]) / options.temperature);
  }
  const double drawn = static_cast<double>(random() >> 11) * 0x1p-53 * sum;
  const auto at = std::upper_bound(sums.begin(), sums.end(), drawn) - sums.begin();
  return order[std::min<size_t>(at, count - 1)];
}

}  // namespace

CLI::App* add_sample_command(CLI::App& app, SampleOptions& options) {
  CLI::App* command = app.add_subcommand("sample", "Let a trained model write");
  command->add_option("run", options.run, "A run folder, or a Hugging Face folder")->required();
  CLI::Option* prompt = command->add_option("--prompt", options.prompt, "The text to go on from (byte models)");
  CLI::Option* tokens = command->add_option("--tokens", options.tokens, "The tokens to go on from: 1,2,3")
                            ->delimiter(',')
                            ->allow_extra_args(false);
  prompt->excludes(tokens);
  command->add_option("--max-tokens", options.max_tokens, "How many to write")->check(CLI::NonNegativeNumber);
  command->add_option("--temperature", options.temperature, "0 takes the likeliest")->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", options.top_k, "Choose among so many; 0: all")->check(CLI::NonNegativeNumber);
  command->add_option("--seed", options.seed, "Of the random choice");
  return command;
}

int run_sample_command(const SampleOptions& options) {
  if (!options.prompt && options.tokens.empty()) {
    config_error("sample", "got neither --prompt nor --tokens, expected one of them; try --prompt 'def '");
  }
  const c10::InferenceMode no_gradients;
  Llama model = load_model(options.run);
  std::vector<int64_t> tokens = first_tokens(options, model->config().vocab);
  Reader reader(*model);
  std::mt19937_64 random(options.seed);
  VisibleText text;
  std::string separator;
  const auto show = [&](int64_t token) {
    if (options.prompt) {
      fmt::print("{}", text.add(static_cast<uint8_t>(token)));
    } else {
      fmt::print("{}{}", separator, token);
      separator = ",";
    }
    std::fflush(stdout);
  };
  for (const int64_t token : tokens) show(token);
  for (int64_t written = 0; written < options.max_tokens; ++written) {
    tokens.push_back(choose(reader.next_logits(tokens), options, random));
    show(tokens.back());
  }
  fmt::print("{}\n", text.finish());
  return 0;
}

}  // namespace sherd
