// The shape of a Llama, or of a Mistral or Qwen2, which are Llamas but for what is said here: presets, and Hugging
// Face's config.json both ways.
//
// Plain values. Everything that this model does not compute (other biases, scaled rotary embeddings, other activations)
// is a ConfigError that names the key of config.json, instead of a model that is silently another one.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace sherd {

/// Whether the output projection has weights of its own or uses the embedding's.
enum class OutputHead { untied, tied };

/// A Mistral may have a window in all layers. A Qwen2 has biases on q, k and v, and may have a window in some layers.
enum class Architecture { llama, mistral, qwen2 };

struct LlamaConfig {
  int64_t dim = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // heads % kv_heads == 0; fewer than heads is grouped-query attention
  int64_t head_dim = 0;  // even; dim / heads unless the file says otherwise
  int64_t ffn = 0;
  int64_t vocab = 0;
  int64_t context = 0;  // longest row; the rotary table has this many positions
  double rope_theta = 10000.0;
  double norm_eps = 1e-5;
  OutputHead head = OutputHead::untied;
  std::string device = "cpu";  // where its parameters live; not part of config.json
  Architecture architecture = Architecture::llama;
  int64_t window = 0;                      // positions that a token attends to, its own included; 0: all before it
  std::vector<bool> windowed_layers = {};  // which layers have the window; empty: all

  /// tiny, small, base, 1b, 7b, or bytes-10m (bytes as tokens, 9.9 M parameters). Throws ConfigError.
  static LlamaConfig preset(std::string_view name);

  /// Names of all presets.
  static std::vector<std::string> preset_names();

  /// Reads a parsed config.json; `file` is named in errors. Throws ConfigError.
  static LlamaConfig from_hugging_face(const nlohmann::json& json, std::string_view file = "config.json");

  /// A config.json that transformers reads (versions 4 and 5).
  nlohmann::json to_hugging_face() const;

  /// Throws ConfigError if a size is impossible.
  void validate() const;

  /// The window of a layer, 0 for none.
  int64_t window_of(int64_t layer) const;

  /// Whether the products that make queries, keys and values have biases.
  bool has_qkv_bias() const { return architecture == Architecture::qwen2; }

  /// Number of parameters, a tied head counted once.
  int64_t parameters() const;
};

}  // namespace sherd
