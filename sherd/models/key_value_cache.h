// What attention has made of the tokens so far, so that a model writes one token at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "sherd/models/llama_config.h"

namespace sherd {

/// Of one block: keys (rotated) and values, [batch, kv_heads, context, head_dim], of which the first `length` positions
/// count. Taken when the first tokens come.
class BlockCache {
 public:
  explicit BlockCache(int64_t context) : context_(context) {}
  /// Adds those of the next tokens, [batch, kv_heads, time, head_dim].
  void add(const at::Tensor& keys, const at::Tensor& values);
  /// Of the last `count` tokens.
  at::Tensor last_keys(int64_t count) const { return keys_.narrow(2, length_ - count, count); }
  at::Tensor last_values(int64_t count) const { return values_.narrow(2, length_ - count, count); }
  int64_t length() const { return length_; }
  void clear() { length_ = 0; }

 private:
  int64_t context_, length_ = 0;
  at::Tensor keys_, values_;
};

/// Of all blocks: 2 * layers * batch * kv_heads * context * head_dim elements.
class KeyValueCache {
 public:
  explicit KeyValueCache(const LlamaConfig& config)
      : context_(config.context), blocks_(static_cast<size_t>(config.layers), BlockCache(config.context)) {}

  /// Tokens so far, and those that there is still room for.
  int64_t length() const { return blocks_.front().length(); }
  int64_t room() const { return context_ - length(); }
  BlockCache& block(size_t i) { return blocks_[i]; }
  /// Forgets all tokens.
  void clear();

 private:
  int64_t context_;
  std::vector<BlockCache> blocks_;
};

}  // namespace sherd
