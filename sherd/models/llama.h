// A Llama, Mistral or Qwen2 with Hugging Face's parameter names, semantics and defaults.
//
// All parameters are deferred (models/deferred.h): building a model takes no memory. The model knows nothing of
// sharding: what wraps the blocks comes in as a factory, and a wrapped block is a LlamaBlockImpl whose forward is
// overridden.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <functional>
#include <memory>
#include <vector>

#include "sherd/models/key_value_cache.h"
#include "sherd/models/linear.h"
#include "sherd/models/llama_config.h"

namespace sherd {

/// A module with the parameter "weight", and for some also "bias".
struct WeightModule : torch::nn::Module {
  enum class Bias { no, yes };
  WeightModule(at::IntArrayRef sizes, const std::string& device, Bias has_bias = Bias::no);
  LinearWeights linear() const { return {weight, bias}; }
  at::Tensor weight, bias;  // bias [sizes[0]] or undefined
};

/// self_attn: grouped-query attention with rotary embeddings. `mask` [time, time], fp32, is added to the scores;
/// without it attention is causal.
class LlamaAttentionImpl : public torch::nn::Module {
 public:
  explicit LlamaAttentionImpl(const LlamaConfig& config);
  at::Tensor forward(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask);
  /// The same of tokens that follow those in the cache, to which their keys and values are added. They see the last
  /// `seen` tokens, themselves included; `mask` [time, seen] may hide some of them from some.
  at::Tensor extend(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask, int64_t seen,
                    BlockCache& cache);

 private:
  struct Heads {
    at::Tensor queries, keys, values;  // [batch, heads, time, head_dim]
  };
  Heads project(const at::Tensor& x, const at::Tensor& rope) const;
  at::Tensor attend(const Heads& made, const std::optional<at::Tensor>& mask) const;

  int64_t heads_, kv_heads_, head_dim_;
  std::shared_ptr<WeightModule> q_proj_, k_proj_, v_proj_, o_proj_;
};

/// mlp: down(silu(gate(x)) * up(x)).
class LlamaMlpImpl : public torch::nn::Module {
 public:
  explicit LlamaMlpImpl(const LlamaConfig& config);
  at::Tensor forward(const at::Tensor& x);

 private:
  std::shared_ptr<WeightModule> gate_proj_, up_proj_, down_proj_;
};

/// One transformer block. x: [batch, time, dim]; rope: [2, time, head_dim / 2]; mask: as for attention.
class LlamaBlockImpl : public torch::nn::Module {
 public:
  explicit LlamaBlockImpl(const LlamaConfig& config);
  virtual at::Tensor forward(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask);
  /// Of tokens that follow those in the cache: as for attention.
  at::Tensor extend(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask, int64_t seen,
                    BlockCache& cache);

 private:
  template <typename Attention>
  at::Tensor run(const at::Tensor& x, const Attention& attention);
  double norm_eps_;
  std::shared_ptr<WeightModule> input_layernorm_, post_attention_layernorm_;
  std::shared_ptr<LlamaAttentionImpl> self_attn_;
  std::shared_ptr<LlamaMlpImpl> mlp_;
};

using LlamaBlockFactory = std::function<std::shared_ptr<LlamaBlockImpl>(const LlamaConfig&)>;

std::shared_ptr<LlamaBlockImpl> plain_llama_block(const LlamaConfig& config);

/// The whole model. Tokens and targets are int64, [batch, time], time <= config.context. Rows longer than a window cost
/// as much as without it, and one mask [time, time] for all layers.
class LlamaImpl : public torch::nn::Module {
 public:
  explicit LlamaImpl(LlamaConfig config, const LlamaBlockFactory& make_block = plain_llama_block);

  const LlamaConfig& config() const { return config_; }

  /// [batch, time, dim]: after the last norm. Throws ConfigError for rows longer than the context; tokens outside the
  /// vocabulary are at::embedding's error.
  at::Tensor hidden(const at::Tensor& tokens);

  /// [batch, time, vocab], whole.
  at::Tensor logits(const at::Tensor& tokens);

  /// [batch, vocab]: of what follows the last of these tokens, which follow those in the cache and are added to it; a
  /// plain model's, not a sharded one's. Throws ConfigError where the cache has no room for them.
  at::Tensor next_logits(const at::Tensor& tokens, KeyValueCache& cache);

  /// scale * sum over targets of the cross entropy, 0-d; targets of -100 are ignored. Never makes whole logits.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets, double scale);

  /// What a trainer calls: loss().
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& targets, double scale);

 private:
  const at::Tensor& head_weight() const;

  LlamaConfig config_;
  std::shared_ptr<WeightModule> embed_tokens_, norm_, lm_head_;  // lm_head_ is null when tied
  std::vector<std::shared_ptr<LlamaBlockImpl>> blocks_;
  at::Tensor rope_;  // [2, context, head_dim / 2]: cosines, sines
};

TORCH_MODULE(Llama);

}  // namespace sherd
