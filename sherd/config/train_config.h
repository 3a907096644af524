// The native training configuration, as plain values: what `sherd train CONFIG.json` reads.
//
// read_train_config() is the only way in: unknown keys, wrong types and impossible values raise ConfigError
// with the path of the key ("optimizer.betas[1]"), the nearest valid key and a fix, before any rank starts.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace sherd {

/// The model: a Hugging Face folder (`path`), or a preset with overrides ("dim", "layers", "heads", "kv_heads",
/// "ffn", "vocab", "context", "tie_embeddings", "rope_theta").
struct ModelConfig {
  std::string path;
  std::string preset;
  std::optional<int64_t> dim, layers, heads, kv_heads, ffn, vocab, context;
  std::optional<double> rope_theta;
  std::optional<std::string> tie_embeddings;  // "true" or "false" as JSON booleans; kept as text, not as a flag
};

enum class DataOrder { sequential, shuffled };

/// Exactly one of `tokens` (a uint16 or uint32 file), `text` (files, folders, globs, read as bytes) and `synthetic`.
struct DataConfig {
  enum class Source { tokens, text, synthetic };
  Source source = Source::synthetic;
  std::string tokens;
  std::string token_type = "uint16";  // or "uint32"
  std::vector<std::string> text;
  int64_t context = 0;  // tokens a row; 0: the model's context
  DataOrder order = DataOrder::shuffled;
  double validation = 0.0;  // share of the stream, taken from its end
};

enum class ReducePoint { every, last };

struct BatchConfig {
  int64_t rows = 8;        // sequences of one accumulation step over all ranks
  int64_t micro = 0;       // rows of one forward on one rank; 0 ("auto"): all of the rank's rows
  int64_t accumulate = 1;  // accumulation steps of one optimizer step
  ReducePoint reduce = ReducePoint::every;
};

struct OptimizerConfig {
  std::string type = "adamw";
  double lr = 3e-4;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  std::vector<std::string> no_decay = {"*norm*", "*bias"};  // globs on parameter names
};

struct ScheduleConfig {
  std::string type = "constant";  // constant, linear, cosine
  int64_t warmup = 0;             // steps
  double final_ratio = 0.0;       // of lr, at the last step (linear, cosine)
};

struct TrainConfig {
  ModelConfig model;
  DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::optional<double> clip = 1.0;  // null: no clipping
  std::string strategy = "zero3";    // ddp, zero1, zero2, zero3 (= fsdp)
  std::string reshard_after_forward = "auto";  // auto (blocks true, root false), true, false; "true"/"false" are JSON booleans
  std::string transport = "auto";              // auto, host, gloo or any c10d backend by name
  int64_t replicate = 1;                       // mesh: {"replicate": R, "shard": S}; shard 0 means all the rest
  int64_t shard = 0;
  std::string device = "cpu";
  int64_t steps = 100;
  int64_t seed = 0;
  std::string output = "runs/latest";
  int64_t eval_every = 0;  // steps; 0: never
  int64_t eval_rows = 8;   // validation rows of one evaluation
  double timeout_s = 60;   // of every wait for a peer
};

/// Reads a configuration. Throws ConfigError.
TrainConfig read_train_config(const nlohmann::json& json);

/// Reads a file and applies `--set a.b=c` overrides in order (the value is JSON, or else a string). Throws ConfigError.
TrainConfig load_train_config(const std::string& file, const std::vector<std::string>& overrides);

/// The whole configuration, defaults included, as it is written into the run folder; read_train_config accepts it.
nlohmann::json to_json(const TrainConfig& config);

}  // namespace sherd
