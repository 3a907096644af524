#include "sherd/models/llama.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <cmath>

#include "sherd/base/error.h"
#include "sherd/memory/deferred.h"
#include "sherd/models/chunked_loss.h"
#include "sherd/models/fused.h"
#include "sherd/models/linear.h"

namespace sherd {
namespace {

// In single precision and in transformers' order of operations, so that the angles are the same.
at::Tensor rotary_table(const LlamaConfig& config) {
  const auto even = at::arange(0, config.head_dim, 2, at::kFloat) / static_cast<double>(config.head_dim);
  const auto frequency = at::pow(config.rope_theta, even).reciprocal();
  const auto angle = at::outer(at::arange(config.context, at::kFloat), frequency);
  return at::stack({angle.cos(), angle.sin()});
}

// What is added to the scores of queries (rows), the last of `all` tokens, and keys: -inf for keys that come later, or
// `window` or more before.
at::Tensor window_mask(int64_t time, int64_t all, int64_t window, const at::TensorOptions& options) {
  const auto seen = at::ones({time, all}, options.dtype(at::kBool));
  const auto hidden = seen.tril(all - time).triu_(all - time + 1 - window).logical_not_();
  return at::zeros({time, all}, options).masked_fill_(hidden, -HUGE_VAL);
}

}  // namespace

WeightModule::WeightModule(at::IntArrayRef sizes, const std::string& device, Bias has_bias)
    : weight(register_parameter("weight", deferred_parameter(sizes, at::Device(device)))) {
  if (has_bias == Bias::yes) bias = register_parameter("bias", deferred_parameter({sizes[0]}, at::Device(device)));
}

LlamaAttentionImpl::LlamaAttentionImpl(const LlamaConfig& config)
    : heads_(config.heads), kv_heads_(config.kv_heads), head_dim_(config.head_dim) {
  using Bias = WeightModule::Bias;
  const auto projection = [&](const char* name, int64_t out, int64_t in, Bias bias) {
    return register_module(name, std::make_shared<WeightModule>(at::IntArrayRef({out, in}), config.device, bias));
  };
  const Bias bias = config.has_qkv_bias() ? Bias::yes : Bias::no;
  q_proj_ = projection("q_proj", heads_ * head_dim_, config.dim, bias);
  k_proj_ = projection("k_proj", kv_heads_ * head_dim_, config.dim, bias);
  v_proj_ = projection("v_proj", kv_heads_ * head_dim_, config.dim, bias);
  o_proj_ = projection("o_proj", config.dim, heads_ * head_dim_, Bias::no);
}

LlamaAttentionImpl::Heads LlamaAttentionImpl::project(const at::Tensor& x, const at::Tensor& rope) const {
  const auto made = linears(x, {q_proj_->linear(), k_proj_->linear(), v_proj_->linear()});
  // As attention wants them: views, and so is what comes back.
  const auto heads = [&](const at::Tensor& y) { return y.unflatten(-1, {-1, head_dim_}).transpose(1, 2); };
  return {heads(rotate_halves(made[0], rope)), heads(rotate_halves(made[1], rope)), heads(made[2])};
}

// Without a mask, as many queries as keys see what came before them; a single one sees all.
at::Tensor LlamaAttentionImpl::attend(const Heads& made, const std::optional<at::Tensor>& mask) const {
  const bool causal = !mask && made.queries.size(2) == made.keys.size(2);
  const auto y = at::scaled_dot_product_attention(made.queries, made.keys, made.values, mask, 0.0, causal, {},
                                                  /*enable_gqa=*/heads_ != kv_heads_);
  return linear(y.transpose(1, 2).flatten(-2), o_proj_->linear());
}

at::Tensor LlamaAttentionImpl::forward(const at::Tensor& x, const at::Tensor& rope,
                                       const std::optional<at::Tensor>& mask) {
  return attend(project(x, rope), mask);
}

at::Tensor LlamaAttentionImpl::extend(const at::Tensor& x, const at::Tensor& rope,
                                      const std::optional<at::Tensor>& mask, int64_t seen, BlockCache& cache) {
  Heads made = project(x, rope);
  cache.add(made.keys, made.values);
  made.keys = cache.last_keys(seen);
  made.values = cache.last_values(seen);
  return attend(made, mask);
}

LlamaMlpImpl::LlamaMlpImpl(const LlamaConfig& config)
    : gate_proj_(register_module(
          "gate_proj", std::make_shared<WeightModule>(at::IntArrayRef({config.ffn, config.dim}), config.device))),
      up_proj_(register_module(
          "up_proj", std::make_shared<WeightModule>(at::IntArrayRef({config.ffn, config.dim}), config.device))),
      down_proj_(register_module(
          "down_proj", std::make_shared<WeightModule>(at::IntArrayRef({config.dim, config.ffn}), config.device))) {}

at::Tensor LlamaMlpImpl::forward(const at::Tensor& x) {
  const auto made = linears(x, {gate_proj_->linear(), up_proj_->linear()});
  return linear(silu_product(made[0], made[1]), down_proj_->linear());
}

LlamaBlockImpl::LlamaBlockImpl(const LlamaConfig& config)
    : norm_eps_(config.norm_eps),
      input_layernorm_(register_module("input_layernorm",
                                       std::make_shared<WeightModule>(at::IntArrayRef({config.dim}), config.device))),
      post_attention_layernorm_(register_module(
          "post_attention_layernorm", std::make_shared<WeightModule>(at::IntArrayRef({config.dim}), config.device))),
      self_attn_(register_module("self_attn", std::make_shared<LlamaAttentionImpl>(config))),
      mlp_(register_module("mlp", std::make_shared<LlamaMlpImpl>(config))) {}

template <typename Attention>
at::Tensor LlamaBlockImpl::run(const at::Tensor& x, const Attention& attention) {
  const auto attended = x + attention(rms_norm(x, input_layernorm_->weight, norm_eps_));
  return attended + mlp_->forward(rms_norm(attended, post_attention_layernorm_->weight, norm_eps_));
}

at::Tensor LlamaBlockImpl::forward(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask) {
  return run(x, [&](const at::Tensor& normed) { return self_attn_->forward(normed, rope, mask); });
}

at::Tensor LlamaBlockImpl::extend(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask,
                                  int64_t seen, BlockCache& cache) {
  return run(x, [&](const at::Tensor& normed) { return self_attn_->extend(normed, rope, mask, seen, cache); });
}

std::shared_ptr<LlamaBlockImpl> plain_llama_block(const LlamaConfig& config) {
  return std::make_shared<LlamaBlockImpl>(config);
}

LlamaImpl::LlamaImpl(LlamaConfig config, const LlamaBlockFactory& make_block) : config_(std::move(config)) {
  config_.validate();
  auto model = register_module("model", std::make_shared<torch::nn::Module>());
  embed_tokens_ = model->register_module(
      "embed_tokens", std::make_shared<WeightModule>(at::IntArrayRef({config_.vocab, config_.dim}), config_.device));
  auto layers = model->register_module("layers", std::make_shared<torch::nn::Module>());
  for (int64_t i = 0; i < config_.layers; ++i) {
    blocks_.push_back(layers->register_module(std::to_string(i), make_block(config_)));
  }
  norm_ =
      model->register_module("norm", std::make_shared<WeightModule>(at::IntArrayRef({config_.dim}), config_.device));
  if (config_.head == OutputHead::untied) {
    lm_head_ = register_module(
        "lm_head", std::make_shared<WeightModule>(at::IntArrayRef({config_.vocab, config_.dim}), config_.device));
  }
  rope_ = rotary_table(config_).to(at::Device(config_.device));  // no buffer: it is not part of the weights
}

const at::Tensor& LlamaImpl::head_weight() const { return lm_head_ ? lm_head_->weight : embed_tokens_->weight; }

at::Tensor LlamaImpl::hidden(const at::Tensor& tokens) {
  if (tokens.dim() != 2 || tokens.size(1) > config_.context)
    config_error("model", "got tokens of shape [{}], expected [batch, time] with time at most {}, the model's context",
                 fmt::join(tokens.sizes(), ", "), config_.context);
  const auto rope = rope_.narrow(1, 0, tokens.size(1));
  auto x = at::embedding(embed_tokens_->weight, tokens);
  std::optional<at::Tensor> mask;
  if (config_.window > 0 && tokens.size(1) > config_.window)
    mask = window_mask(tokens.size(1), tokens.size(1), config_.window, x.options());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const bool windowed = config_.window_of(static_cast<int64_t>(i)) > 0;
    x = blocks_[i]->forward(x, rope, windowed ? mask : std::nullopt);
  }
  return rms_norm(x, norm_->weight, config_.norm_eps);
}

at::Tensor LlamaImpl::logits(const at::Tensor& tokens) { return at::linear(hidden(tokens), head_weight()); }

at::Tensor LlamaImpl::next_logits(const at::Tensor& tokens, KeyValueCache& cache) {
  if (tokens.dim() != 2 || tokens.size(1) == 0 || tokens.size(1) > cache.room())
    config_error("model",
                 "got tokens of shape [{}], expected [batch, time] with time from 1 to {}, what is left of the "
                 "model's context",
                 fmt::join(tokens.sizes(), ", "), cache.room());
  const int64_t time = tokens.size(1), before = cache.length(), all = before + time;
  const auto rope = rope_.narrow(1, before, time);
  auto x = at::embedding(embed_tokens_->weight, tokens);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const int64_t window = config_.window_of(static_cast<int64_t>(i));
    // One token sees the last ones, all of them; several need a mask, but for the first, which are as in forward.
    const int64_t seen = window > 0 ? std::min(all, time - 1 + window) : all;
    std::optional<at::Tensor> mask;
    if (time > 1 && (before > 0 || (window > 0 && all > window)))
      mask = window_mask(time, seen, window > 0 ? window : all, x.options());
    x = blocks_[i]->extend(x, rope, mask, seen, cache.block(i));
  }
  const auto last = rms_norm(x.select(1, time - 1).contiguous(), norm_->weight, config_.norm_eps);
  return at::linear(last, head_weight());
}

at::Tensor LlamaImpl::loss(const at::Tensor& tokens, const at::Tensor& targets, double scale) {
  return linear_cross_entropy(hidden(tokens).flatten(0, 1), head_weight(), targets.flatten(), scale);
}

at::Tensor LlamaImpl::forward(const at::Tensor& tokens, const at::Tensor& targets, double scale) {
  return loss(tokens, targets, scale);
}

}  // namespace sherd
