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
#include "sherd/config/values.h"
#include "sherd/data/sampler.h"
#include "sherd/data/token_source.h"
#include "sherd/models/llama_config.h"
#include "sherd/optim/precision_policy.h"
#include "sherd/optim/schedule.h"
#include "sherd/recompute/recompute_policy.h"
#include "sherd/shard/strategy.h"

namespace sherd {

/// Exactly one of a Hugging Face folder (`path`) and a `preset`, which the other fields override. No LlamaConfig: what
/// is not set is the preset's.
struct ModelConfig {
  std::string path;
  std::string preset;
  std::optional<int64_t> dim, layers, heads, kv_heads, ffn, vocab, context;
  std::optional<double> rope_theta;
  std::optional<OutputHead> head;  // "tie_embeddings": true or false
};

/// Exactly one of `tokens` (a uint16 or uint32 file), `text` (files, folders, globs, read as bytes) and `synthetic`.
struct DataConfig {
  enum class Source { tokens, text, synthetic };
  Source source = Source::synthetic;
  std::string tokens;
  TokenType token_type = TokenType::uint16;
  std::vector<std::string> text;
  int64_t context = 0;  // tokens of a row; 0 ("auto"): the model's context
  Order order = Order::shuffled;
  std::string mask;                  // of tokens: a file of one byte a token, 0: not a target
  std::optional<int64_t> separator;  // a token id that ends a document; the token after it is not a target
  double validation = 0.0;           // share of the stream, taken from its end
};

enum class ReducePoint { every, last };
inline constexpr Name<ReducePoint> kReducePointNames[] = {{ReducePoint::every, "every"}, {ReducePoint::last, "last"}};

/// No SamplerOptions: these know the model's context.
struct BatchConfig {
  int64_t rows = 8;        // sequences of one accumulation step over all ranks
  int64_t micro = 0;       // rows of one forward on one rank; 0 ("auto"): all of the rank's rows
  int64_t accumulate = 1;  // accumulation steps of one optimizer step
  ReducePoint reduce = ReducePoint::every;
  LastBatch last = LastBatch::next_epoch;
};

enum class CastInputs { no, yes };

/// What a program in Python can be told besides.
struct ProgramOptions {
  std::optional<std::vector<std::string>> units;  // class names; null: chosen by sherd.shard
  std::optional<std::string> output;              // precision.output: a type that outputs are cast to
  CastInputs cast_inputs = CastInputs::yes;       // precision.cast_inputs: to the compute type
};

/// What an engine has among its options stands here again: engine/ is above (engine/training_setup.cpp hands it on).
struct TrainConfig {
  ModelConfig model;
  DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  PrecisionPolicy precision;
  LossScaleConfig loss_scale;
  ScheduleOptions schedule;                                    // its steps: `steps`
  std::optional<double> clip = 1.0;                            // largest global gradient norm; null: no clipping
  std::string strategy = "zero3";                              // ddp, zero1, zero2, zero3, hsdp; fsdp is read as zero3
  ReshardPolicy reshard_after_forward = ReshardPolicy::units;  // all: with zero3 and hsdp
  RecomputePolicy recompute = {};
  int64_t persistent_below = 0;    // bytes: parameter groups below stay whole on every rank
  std::string transport = "auto";  // auto, host, gloo
  int64_t replicate = 1;           // mesh: {"replicate": R, "shard": S}; R above 1 with hsdp only
  int64_t shard = 0;               // 0 ("auto"): all the ranks that `replicate` leaves
  std::string device = "cpu";
  int64_t steps = 100;
  int64_t seed = 0;
  std::string output = "runs/latest";
  int64_t eval_every = 0;  // steps; 0: never
  int64_t eval_rows = 8;   // validation rows of one evaluation
  double timeout_s = 60;   // of every wait for a peer
  ProgramOptions program;
};

/// Reads a configuration and looks whether the files that it names exist. Throws ConfigError.
TrainConfig read_train_config(const nlohmann::json& json);

/// The same for a program that brings its own model and data, and writes its own output: without these keys, and with
/// those of ProgramOptions.
TrainConfig read_program_config(const nlohmann::json& json);

/// Reads a file and applies overrides "a.b=c" in order: the value is JSON or else a string, objects on the way are
/// created, and null takes back a model or data source ("data.tokens=null"). Throws ConfigError.
TrainConfig load_train_config(const std::string& file, const std::vector<std::string>& overrides);

/// The whole configuration, defaults included, as it is written into the run folder; whoever it is for accepts it.
nlohmann::json to_json(const TrainConfig& config, Caller caller = Caller::command);

}  // namespace sherd
