#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "sherd/config/settings.h"

namespace sherd {
namespace {

using M = ModelConfig;

std::vector<Setting<M>> model_settings() {
  return {
      {"path", &M::path, text("the path of a Hugging Face folder").or_unset(),
       "The model and its weights: this or a preset."},
      {"preset", &M::preset, words(LlamaConfig::preset_names()).or_unset(),
       "A Llama of this shape, with random weights. The other settings change it."},
      {"dim", &M::dim, integers(), "Width of the hidden state."},
      {"layers", &M::layers, integers(), "Blocks."},
      {"heads", &M::heads, integers(), "Heads of attention."},
      {"kv_heads", &M::kv_heads, integers(), "Heads of keys and values, which divide heads; unset: as many as heads."},
      {"ffn", &M::ffn, integers(), "Width of the feed-forward layers."},
      {"vocab", &M::vocab, integers(), "Tokens that there are; 256 for text."},
      {"context", &M::context, integers(), "The longest row."},
      {"rope_theta", &M::rope_theta, numbers(kPositive).suggesting({LlamaConfig{}.rope_theta}),
       "The base of rotary embeddings."},
      {"tie_embeddings", &M::head, boolean(), "Whether the output projection has the embedding's weights."},
  };
}

void check_model(JsonReader& reader, M& model) {
  const bool has_path = !model.path.empty(), has_preset = !model.preset.empty();
  if (has_path == has_preset) {
    config_error("config",
                 "got {} for 'model', expected one of model.path (a Hugging Face folder) and model.preset ({}); try {}",
                 has_path ? "both a path and a preset" : "neither a path nor a preset",
                 fmt::join(LlamaConfig::preset_names(), ", "),
                 has_path ? "model.preset null" : "model.preset \"tiny\"");
  }
  const auto others = static_cast<int64_t>(reader.size()) - reader.contains("path") - reader.contains("preset");
  if (has_path && others > 0) {
    config_error("config",
                 "got 'model.path' together with {} other keys of 'model', expected the shape in its config.json only; "
                 "try to remove them, or model.preset instead of the path",
                 others);
  }
}

}  // namespace

Setting<TrainConfig> model_section() {
  return section<TrainConfig>("model", &TrainConfig::model, model_settings(), "What is trained.", check_model);
}

}  // namespace sherd
