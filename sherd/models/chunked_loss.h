// The output projection and the cross entropy as one function, over chunks of tokens: whole logits never exist.
//
// With gradients on, the forward pass computes the gradients of `x` and `weight` along with the loss while a chunk's
// logits are in cache, so that backward only hands them out, and the weight is not needed again after forward.
// Memory: one chunk of logits (elsewhere than on the CPU two), and the gradients themselves (as large as `x` and
// `weight`).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace sherd {

/// Targets of this value add nothing to the loss.
inline constexpr int64_t kIgnoredTarget = -100;

/// scale * sum over tokens of -log softmax(weight @ x[t])[targets[t]], summed in double; 0-d, fp32, differentiable.
/// x: [T, D], weight: [V, D], both fp32, bf16 or fp16 on one device; targets: [T], int64. Throws ConfigError for a
/// target outside the vocabulary.
at::Tensor linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets, double scale);

/// Tokens of one chunk for a vocabulary of this size.
int64_t loss_chunk_tokens(int64_t vocab);

}  // namespace sherd
