#include "sherd/models/llama_config.h"

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sherd/base/error.h"

namespace sherd {
namespace {

struct Preset {
  const char* name;
  LlamaConfig config;
};

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"tiny", {64, 2, 4, 2, 16, 176, 256, 64}},          {"small", {512, 8, 8, 8, 64, 1408, 8192, 256}},
      {"base", {768, 12, 12, 12, 64, 2048, 32000, 256}},  {"1b", {2048, 16, 16, 16, 128, 5632, 32000, 512}},
      {"7b", {4096, 32, 32, 32, 128, 11008, 32000, 512}}, {"bytes-10m", {384, 6, 6, 3, 64, 1024, 256, 256}},
  };
  return all;
}

using nlohmann::json;

bool absent(const json& object, const char* key) { return !object.contains(key) || object.at(key).is_null(); }

int64_t read_size(const json& object, const char* key, std::string_view file, std::optional<int64_t> fallback = {}) {
  if (absent(object, key)) {
    if (fallback) return *fallback;
    config_error(file, "got no \"{}\", expected it in a model's config", key);
  }
  const json& value = object.at(key);
  if (!value.is_number_integer()) config_error(file, "got \"{}\": {}, expected an integer", key, value.dump());
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX)
    config_error(file, "got \"{}\": {}, expected a size", key, value.dump());
  return value.get<int64_t>();
}

double read_number(const json& object, const char* key, std::string_view file, double fallback) {
  if (absent(object, key)) return fallback;
  const json& value = object.at(key);
  if (!value.is_number()) config_error(file, "got \"{}\": {}, expected a number", key, value.dump());
  return value.get<double>();
}

bool read_flag(const json& object, const char* key, std::string_view file) {
  if (absent(object, key)) return false;
  const json& value = object.at(key);
  if (!value.is_boolean()) config_error(file, "got \"{}\": {}, expected true or false", key, value.dump());
  return value.get<bool>();
}

// A key that, if present and not null, must have this value, because nothing else is implemented.
void require_value(const json& object, const char* key, const json& expected, std::string_view file) {
  if (absent(object, key) || object.at(key) == expected) return;
  config_error(file, "got \"{}\": {}, expected {}: this model does not compute anything else", key,
               object.at(key).dump(), expected.dump());
}

// transformers 4 writes "rope_theta" and "rope_scaling"; 5 writes both into "rope_parameters".
double read_rope_theta(const json& object, std::string_view file) {
  double theta = read_number(object, "rope_theta", file, 10000.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (absent(object, key)) continue;
    const json& rope = object.at(key);
    if (!rope.is_object()) config_error(file, "got \"{}\": {}, expected an object or null", key, rope.dump());
    for (const char* type : {"type", "rope_type"}) {
      if (!absent(rope, type) && rope.at(type) != "default")
        config_error(file,
                     "got \"{}\": {{\"{}\": {}}}, expected \"default\": scaled rotary embeddings are not computed", key,
                     type, rope.at(type).dump());
    }
    theta = read_number(rope, "rope_theta", file, theta);
    require_value(rope, "partial_rotary_factor", 1.0, file);
  }
  return theta;
}

// What transformers takes for keys that a config.json leaves out.
struct Family {
  Architecture architecture;
  const char *model_type, *class_name;
  int64_t kv_heads;  // 0: as many as heads
  int64_t context;
};

constexpr Family kFamilies[] = {{Architecture::llama, "llama", "LlamaForCausalLM", 0, 2048},
                                {Architecture::mistral, "mistral", "MistralForCausalLM", 8, 131072},
                                {Architecture::qwen2, "qwen2", "Qwen2ForCausalLM", 32, 32768}};
constexpr int64_t kWindowLeftOut = 4096, kMaxWindowLayersLeftOut = 28;

const Family& read_family(const json& object, std::string_view file) {
  if (absent(object, "model_type")) config_error(file, "got no \"model_type\", expected one of llama, mistral, qwen2");
  for (const auto& family : kFamilies) {
    if (object.at("model_type") == family.model_type) return family;
  }
  config_error(file, "got \"model_type\": {}, expected llama, mistral or qwen2; other architectures cannot be loaded",
               object.at("model_type").dump());
}

const Family& family_of(Architecture architecture) {
  for (const auto& family : kFamilies) {
    if (family.architecture == architecture) return family;
  }
  SHERD_CHECK(false);
}

int64_t read_window(const json& object, std::string_view file) {
  const int64_t window = read_size(object, "sliding_window", file, kWindowLeftOut);
  if (window < 1) config_error(file, "got \"sliding_window\": {}, expected at least 1, or null for none", window);
  return window;
}

// Null is no window, and leaving the key out is not null.
void read_mistral_window(const json& object, std::string_view file, LlamaConfig& config) {
  const bool is_null = object.contains("sliding_window") && object.at("sliding_window").is_null();
  if (!is_null) config.window = read_window(object, file);
}

// "layer_types", or else all layers from "max_window_layers" on; and all of it only where "use_sliding_window" is true.
void read_qwen2_windows(const json& object, std::string_view file, LlamaConfig& config) {
  const bool is_null = object.contains("sliding_window") && object.at("sliding_window").is_null();
  const bool used = read_flag(object, "use_sliding_window", file) && !is_null;
  const int64_t first = read_size(object, "max_window_layers", file, kMaxWindowLayersLeftOut);
  std::vector<bool> windowed;
  if (absent(object, "layer_types")) {
    for (int64_t layer = 0; layer < config.layers; ++layer) windowed.push_back(used && layer >= first);
  } else {
    const json& types = object.at("layer_types");
    if (!types.is_array() || static_cast<int64_t>(types.size()) != config.layers)
      config_error(file, "got \"layer_types\": {}, expected an array of {}, one for each layer", types.dump(),
                   config.layers);
    for (const json& type : types) {
      if (type != "full_attention" && type != "sliding_attention")
        config_error(file, "got \"layer_types\": [{}], expected full_attention or sliding_attention", type.dump());
      windowed.push_back(type == "sliding_attention");
      if (windowed.back() && !used)
        config_error(
            file,
            "got \"layer_types\" with sliding_attention, but no window; try \"use_sliding_window\": true and a "
            "number for \"sliding_window\"");
    }
  }
  if (std::find(windowed.begin(), windowed.end(), true) == windowed.end()) return;
  config.window = read_window(object, file);
  config.windowed_layers = std::move(windowed);
}

// The keys that say where the window is.
void write_windows(const LlamaConfig& config, json& object) {
  const json window = config.window > 0 ? json(config.window) : json(nullptr);
  if (config.architecture == Architecture::mistral) object["sliding_window"] = window;
  if (config.architecture != Architecture::qwen2) return;
  object["use_sliding_window"] = config.window > 0;
  object["sliding_window"] = window;
  object["max_window_layers"] = config.layers;  // "layer_types" has the last word
  auto& types = object["layer_types"] = json::array();
  for (int64_t layer = 0; layer < config.layers; ++layer)
    types.push_back(config.window_of(layer) > 0 ? "sliding_attention" : "full_attention");
}

}  // namespace

LlamaConfig LlamaConfig::preset(std::string_view name) {
  for (const auto& preset : presets()) {
    if (name == preset.name) return preset.config;
  }
  config_error("model.preset", "got \"{}\", expected one of {}", name, fmt::join(preset_names(), ", "));
}

std::vector<std::string> LlamaConfig::preset_names() {
  std::vector<std::string> names;
  for (const auto& preset : presets()) names.emplace_back(preset.name);
  return names;
}

LlamaConfig LlamaConfig::from_hugging_face(const json& object, std::string_view file) {
  if (!object.is_object()) config_error(file, "got {}, expected a JSON object", object.type_name());
  const Family& family = read_family(object, file);
  require_value(object, "hidden_act", "silu", file);
  if (family.architecture == Architecture::llama) {  // the others do not read these keys
    require_value(object, "attention_bias", false, file);
    require_value(object, "mlp_bias", false, file);
  }
  require_value(object, "attention_dropout", 0.0, file);
  require_value(object, "partial_rotary_factor", 1.0, file);
  if (!absent(object, "quantization_config"))
    config_error(file, "got \"quantization_config\", expected plain weights; try the unquantized model");

  LlamaConfig config;
  config.architecture = family.architecture;
  config.dim = read_size(object, "hidden_size", file);
  config.layers = read_size(object, "num_hidden_layers", file);
  config.heads = read_size(object, "num_attention_heads", file);
  config.ffn = read_size(object, "intermediate_size", file);
  config.vocab = read_size(object, "vocab_size", file);
  const bool all_heads = family.kv_heads == 0 || object.contains("num_key_value_heads");  // null means all, too
  config.kv_heads = read_size(object, "num_key_value_heads", file, all_heads ? config.heads : family.kv_heads);
  config.context = read_size(object, "max_position_embeddings", file, family.context);
  config.norm_eps = read_number(object, "rms_norm_eps", file, 1e-6);
  config.rope_theta = read_rope_theta(object, file);
  config.head = read_flag(object, "tie_word_embeddings", file) ? OutputHead::tied : OutputHead::untied;
  if (absent(object, "head_dim")) {
    if (config.heads < 1 || config.dim % config.heads != 0)
      config_error(file,
                   "got \"hidden_size\": {} and \"num_attention_heads\": {}, expected a multiple; try \"head_dim\"",
                   config.dim, config.heads);
    config.head_dim = config.dim / config.heads;
  } else {
    config.head_dim = read_size(object, "head_dim", file);
  }
  if (config.architecture == Architecture::mistral) read_mistral_window(object, file, config);
  if (config.architecture == Architecture::qwen2) read_qwen2_windows(object, file, config);
  config.validate();
  return config;
}

json LlamaConfig::to_hugging_face() const {
  const Family& family = family_of(architecture);
  json object = {{"architectures", {family.class_name}},
                 {"model_type", family.model_type},
                 {"hidden_act", "silu"},
                 {"hidden_size", dim},
                 {"num_hidden_layers", layers},
                 {"num_attention_heads", heads},
                 {"num_key_value_heads", kv_heads},
                 {"head_dim", head_dim},
                 {"intermediate_size", ffn},
                 {"vocab_size", vocab},
                 {"max_position_embeddings", context},
                 {"rope_theta", rope_theta},
                 {"rms_norm_eps", norm_eps},
                 {"tie_word_embeddings", head == OutputHead::tied},
                 {"torch_dtype", "float32"}};
  if (architecture == Architecture::llama) {
    object["attention_bias"] = false;
    object["mlp_bias"] = false;
  }
  write_windows(*this, object);
  return object;
}

void LlamaConfig::validate() const {
  const std::pair<const char*, int64_t> sizes[] = {{"dim", dim},           {"layers", layers},     {"heads", heads},
                                                   {"kv_heads", kv_heads}, {"head_dim", head_dim}, {"ffn", ffn},
                                                   {"vocab", vocab},       {"context", context}};
  constexpr int64_t kLargest = int64_t{1} << 30;  // products of two fit in 64 bits
  for (const auto& [name, value] : sizes) {
    if (value < 1 || value > kLargest) config_error("model", "got {} = {}, expected 1 to {}", name, value, kLargest);
  }
  if (heads % kv_heads != 0)
    config_error("model", "got heads = {} and kv_heads = {}, expected heads to be a multiple of kv_heads", heads,
                 kv_heads);
  if (head_dim % 2 != 0)
    config_error("model", "got head_dim = {}, expected an even number, since rotary embeddings turn pairs", head_dim);
  if (window < 0) config_error("model", "got window = {}, expected at least 0", window);
  const bool windows_fit = windowed_layers.empty() || static_cast<int64_t>(windowed_layers.size()) == layers;
  if (!windows_fit)
    config_error("model", "got windowed_layers for {} layers, expected {} or none", windowed_layers.size(), layers);
  // What config.json of the architecture cannot say.
  if (architecture == Architecture::llama && window > 0)
    config_error("model", "got window = {} in a Llama, expected 0; try Architecture::mistral", window);
  if (architecture == Architecture::mistral && !windowed_layers.empty())
    config_error("model", "got windowed_layers in a Mistral, expected the window in all layers; try none");
  if (!(rope_theta > 0.0)) config_error("model", "got rope_theta = {}, expected more than 0", rope_theta);
  if (!(norm_eps >= 0.0)) config_error("model", "got norm_eps = {}, expected at least 0", norm_eps);
}

int64_t LlamaConfig::window_of(int64_t layer) const {
  return windowed_layers.empty() || windowed_layers.at(static_cast<size_t>(layer)) ? window : 0;
}

int64_t LlamaConfig::parameters() const {
  const int64_t biases = has_qkv_bias() ? (heads + 2 * kv_heads) * head_dim : 0;
  const int64_t attention = 2 * dim * (heads + kv_heads) * head_dim + biases;
  const int64_t embeddings = vocab * dim * (head == OutputHead::tied ? 1 : 2);
  return embeddings + dim + layers * (attention + 3 * dim * ffn + 2 * dim);
}

}  // namespace sherd
