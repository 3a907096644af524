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

#include "sherd/config/optimizer_config.h"

namespace sherd {

enum class Embeddings { untied, tied };

/// Exactly one of a Hugging Face folder (`path`) and a `preset`, which the other fields override.
struct ModelConfig {
  std::string path;
  std::string preset;
  std::optional<int64_t> dim, layers, heads, kv_heads, ffn, vocab, context;
  std::optional<double> rope_theta;
  std::optional<Embeddings> embeddings;  // "tie_embeddings": true or false
};

enum class DataOrder { sequential, shuffled };

/// Exactly one of `tokens` (a uint16 or uint32 file), `text` (files, folders, globs, read as bytes) and `synthetic`.
struct DataConfig {
  enum class Source { tokens, text, synthetic };
  Source source = Source::synthetic;
  std::string tokens;
  std::string token_type = "uint16";  // or "uint32"
  std::vector<std::string> text;
  int64_t context = 0;  // tokens of a row; 0 ("auto"): the model's context
  DataOrder order = DataOrder::shuffled;
  std::string mask;                  // of tokens: a file of one byte a token, 0: not a target
  std::optional<int64_t> separator;  // a token id that ends a document; the token after it is not a target
  double validation = 0.0;           // share of the stream, taken from its end
};

enum class ReducePoint { every, last };

/// What becomes of the rows at the end of an epoch that do not fill a step (data/sampler.h).
enum class LastStep { next_epoch, drop, weighted };

struct BatchConfig {
  int64_t rows = 8;        // sequences of one accumulation step over all ranks
  int64_t micro = 0;       // rows of one forward on one rank; 0 ("auto"): all of the rank's rows
  int64_t accumulate = 1;  // accumulation steps of one optimizer step
  ReducePoint reduce = ReducePoint::every;
  LastStep last = LastStep::next_epoch;
};

struct ScheduleConfig {
  std::string type = "constant";  // constant, linear, cosine
  int64_t warmup = 0;             // steps
  double final_ratio = 0.0;       // of lr, at the last step (linear, cosine)
};

/// automatic: blocks are resharded after forward, the root is not.
enum class ReshardAfterForward { automatic, always, never };

struct TrainConfig {
  ModelConfig model;
  DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  PrecisionConfig precision;
  LossScaleConfig loss_scale;
  ScheduleConfig schedule;
  std::optional<double> clip = 1.0;  // largest global gradient norm; null: no clipping
  std::string strategy = "zero3";    // ddp, zero1, zero2, zero3, hsdp; fsdp is read as zero3
  ReshardAfterForward reshard_after_forward = ReshardAfterForward::automatic;  // "auto", true, false; true: zero3, hsdp
  std::string recompute = "none";  // full, every:K: blocks whose activations are made again in backward
  int64_t persistent_below = 0;    // bytes: parameter groups below stay whole on every rank
  std::string transport = "auto";  // auto, host, gloo, threads or another c10d backend by name
  int64_t replicate = 1;           // mesh: {"replicate": R, "shard": S}; R above 1 with hsdp only
  int64_t shard = 0;               // 0 ("auto"): all the ranks that `replicate` leaves
  std::string device = "cpu";
  int64_t steps = 100;
  int64_t seed = 0;
  std::string output = "runs/latest";
  int64_t eval_every = 0;  // steps; 0: never
  int64_t eval_rows = 8;   // validation rows of one evaluation
  double timeout_s = 60;   // of every wait for a peer
};

/// Reads a configuration and looks whether the files that it names exist. Throws ConfigError.
TrainConfig read_train_config(const nlohmann::json& json);

/// The same for a program that brings its own model and data, and writes its own output: without these keys.
TrainConfig read_program_config(const nlohmann::json& json);

/// Reads a file and applies overrides "a.b=c" in order: the value is JSON or else a string, objects on the way are
/// created, and null takes back a model or data source ("data.tokens=null"). Throws ConfigError.
TrainConfig load_train_config(const std::string& file, const std::vector<std::string>& overrides);

/// The whole configuration, defaults included, as it is written into the run folder; read_train_config accepts it.
nlohmann::json to_json(const TrainConfig& config);

}  // namespace sherd
