#include "sherd/models/llama_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using nlohmann::json;

json tiny() { return LlamaConfig::preset("tiny").to_hugging_face(); }

// The message of the ConfigError that reading `object` raises; empty if it raises none.
std::string error_of(const json& object) {
  try {
    LlamaConfig::from_hugging_face(object, "dir/config.json");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(LlamaConfig, PresetsHaveTheirSizes) {
  EXPECT_EQ(LlamaConfig::preset("small").parameters(), 34087424);
  EXPECT_NEAR(static_cast<double>(LlamaConfig::preset("base").parameters()), 134e6, 1e6);
  EXPECT_NEAR(static_cast<double>(LlamaConfig::preset("1b").parameters()), 0.95e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(LlamaConfig::preset("7b").parameters()), 6.74e9, 0.01e9);
  const auto bytes = LlamaConfig::preset("bytes-10m");
  EXPECT_EQ(bytes.vocab, 256);
  EXPECT_EQ(bytes.context, 256);
  EXPECT_NEAR(static_cast<double>(bytes.parameters()), 10e6, 0.1e6);
  for (const auto& name : LlamaConfig::preset_names()) EXPECT_NO_THROW(LlamaConfig::preset(name).validate());
}

TEST(LlamaConfig, UnknownPresetNamesTheKnown) {
  try {
    LlamaConfig::preset("huge");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("tiny, small, base, 1b, 7b, bytes-10m"), std::string::npos)
        << error.what();
  }
}

TEST(LlamaConfig, RoundTripsThroughHuggingFace) {
  for (const auto head : {OutputHead::untied, OutputHead::tied}) {
    LlamaConfig config{60, 3, 6, 2, 12, 77, 101, 48, 50000.0, 1e-6, head};
    const auto read = LlamaConfig::from_hugging_face(config.to_hugging_face());
    EXPECT_EQ(read.to_hugging_face(), config.to_hugging_face());
    EXPECT_EQ(read.head_dim, 12);
    EXPECT_EQ(read.head, head);
    EXPECT_EQ(read.rope_theta, 50000.0);
  }
}

TEST(LlamaConfig, FillsInWhatHuggingFaceLeavesOut) {
  const auto config = LlamaConfig::from_hugging_face({{"model_type", "llama"},
                                                      {"hidden_size", 64},
                                                      {"num_hidden_layers", 1},
                                                      {"num_attention_heads", 4},
                                                      {"intermediate_size", 96},
                                                      {"vocab_size", 99},
                                                      {"rope_scaling", nullptr}});
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.context, 2048);
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.head, OutputHead::untied);
}

TEST(LlamaConfig, ReadsBothFormsOfRope) {
  auto object = tiny();
  object["rope_theta"] = 500000.0;
  EXPECT_EQ(LlamaConfig::from_hugging_face(object).rope_theta, 500000.0);
  object.erase("rope_theta");
  object["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  EXPECT_EQ(LlamaConfig::from_hugging_face(object).rope_theta, 1e6);
}

json changed(json object, const char* key, const json& value) {
  object[key] = value;
  return object;
}

LlamaConfig family(Architecture architecture) {
  auto config = LlamaConfig::preset("tiny");
  config.architecture = architecture;
  config.layers = 3;
  return config;
}

TEST(LlamaConfig, ReadsTheWindowOfAMistral) {
  const json object = family(Architecture::mistral).to_hugging_face();
  const auto window = [](const json& from) { return LlamaConfig::from_hugging_face(from).window; };
  EXPECT_EQ(LlamaConfig::from_hugging_face(object).architecture, Architecture::mistral);
  EXPECT_EQ(window(object), 0);
  EXPECT_EQ(window(changed(object, "sliding_window", 12)), 12);
  EXPECT_EQ(window(changed(object, "sliding_window", nullptr)), 0);
  auto left_out = object;
  left_out.erase("sliding_window");
  EXPECT_EQ(window(left_out), 4096);
  EXPECT_EQ(LlamaConfig::from_hugging_face(changed(object, "sliding_window", 12)).window_of(2), 12);
}

TEST(LlamaConfig, ReadsTheWindowsOfAQwen2) {
  auto object = family(Architecture::qwen2).to_hugging_face();
  const auto windows = [](const json& from) {
    const auto config = LlamaConfig::from_hugging_face(from);
    return std::vector<int64_t>{config.window_of(0), config.window_of(1), config.window_of(2)};
  };
  using Windows = std::vector<int64_t>;
  EXPECT_EQ(windows(object), (Windows{0, 0, 0}));
  object.update({{"use_sliding_window", true}, {"sliding_window", 8}});
  EXPECT_EQ(windows(object), (Windows{0, 0, 0}));  // layer_types says so
  object["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(windows(object), (Windows{8, 0, 8}));
  object.erase("layer_types");
  EXPECT_EQ(windows(object), (Windows{0, 0, 0}));
  EXPECT_EQ(windows(changed(object, "max_window_layers", 1)), (Windows{0, 8, 8}));
  EXPECT_EQ(windows(changed(changed(object, "max_window_layers", 0), "use_sliding_window", false)), (Windows{0, 0, 0}));
  EXPECT_EQ(windows(changed(changed(object, "max_window_layers", 0), "sliding_window", nullptr)), (Windows{0, 0, 0}));
}

TEST(LlamaConfig, FamiliesRoundTripThroughHuggingFace) {
  auto mistral = family(Architecture::mistral), qwen2 = family(Architecture::qwen2);
  mistral.window = 5;
  qwen2.window = 6;
  qwen2.windowed_layers = {false, true, true};
  for (const auto& config : {family(Architecture::mistral), family(Architecture::qwen2), mistral, qwen2}) {
    const auto read = LlamaConfig::from_hugging_face(config.to_hugging_face());
    EXPECT_EQ(read.architecture, config.architecture);
    EXPECT_EQ(read.to_hugging_face(), config.to_hugging_face());
    for (int64_t layer = 0; layer < 3; ++layer) EXPECT_EQ(read.window_of(layer), config.window_of(layer));
    EXPECT_EQ(read.parameters(), config.parameters());
  }
  EXPECT_EQ(qwen2.parameters() - mistral.parameters(), 3 * (4 + 2 * 2) * 16);  // biases of q, k and v
}

TEST(LlamaConfig, FamiliesFillInTheirOwnValues) {
  json object = {{"model_type", "mistral"},   {"hidden_size", 64}, {"num_hidden_layers", 1},
                 {"num_attention_heads", 32}, {"vocab_size", 99},  {"intermediate_size", 96}};
  auto config = LlamaConfig::from_hugging_face(object);
  EXPECT_EQ(config.kv_heads, 8);
  EXPECT_EQ(config.context, 131072);
  EXPECT_EQ(LlamaConfig::from_hugging_face(changed(object, "num_key_value_heads", nullptr)).kv_heads, 32);
  config = LlamaConfig::from_hugging_face(changed(object, "model_type", "qwen2"));
  EXPECT_EQ(config.kv_heads, 32);
  EXPECT_EQ(config.context, 32768);
  EXPECT_EQ(config.window, 0);
}

TEST(LlamaConfig, RefusesWindowsThatMakeNoSense) {
  const json mistral = family(Architecture::mistral).to_hugging_face();
  auto qwen2 = family(Architecture::qwen2).to_hugging_face();
  for (const json& window : {json(0), json(-4), json("wide"), json(2.5)})
    EXPECT_NE(error_of(changed(mistral, "sliding_window", window)).find("\"sliding_window\""), std::string::npos);
  const json sliding = {"sliding_attention", "sliding_attention", "sliding_attention"};
  EXPECT_NE(error_of(changed(qwen2, "layer_types", sliding)).find("use_sliding_window"), std::string::npos);
  qwen2.update({{"use_sliding_window", true}, {"sliding_window", 8}});
  EXPECT_EQ(error_of(changed(qwen2, "layer_types", sliding)), "");
  const json wrong[] = {
      {"full_attention"}, "full_attention", {"chunked_attention", "full_attention", "full_attention"}};
  for (const json& types : wrong)
    EXPECT_NE(error_of(changed(qwen2, "layer_types", types)).find("\"layer_types\""), std::string::npos) << types;
  EXPECT_NE(error_of(changed(qwen2, "use_sliding_window", 1)).find("use_sliding_window"), std::string::npos);

  auto config = family(Architecture::llama);
  config.window = 3;
  EXPECT_THROW(config.validate(), ConfigError);
  config.architecture = Architecture::mistral;
  EXPECT_NO_THROW(config.validate());
  config.windowed_layers = {true, false, true};
  EXPECT_THROW(config.validate(), ConfigError);
  config.architecture = Architecture::qwen2;
  EXPECT_NO_THROW(config.validate());
  config.windowed_layers = {true};
  EXPECT_THROW(config.validate(), ConfigError);
  config.windowed_layers.clear();
  config.window = -1;
  EXPECT_THROW(config.validate(), ConfigError);
}

TEST(LlamaConfig, RefusesWhatItDoesNotCompute) {
  const std::pair<const char*, json> unsupported[] = {
      {"model_type", "gpt2"},
      {"hidden_act", "gelu"},
      {"attention_bias", true},
      {"mlp_bias", true},
      {"attention_dropout", 0.1},
      {"partial_rotary_factor", 0.5},
      {"quantization_config", {{"bits", 4}}},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
      {"rope_parameters", {{"rope_type", "llama3"}, {"rope_theta", 1e4}}},
  };
  for (const auto& [key, value] : unsupported) {
    auto object = tiny();
    object[key] = value;
    EXPECT_NE(error_of(object).find(std::string("[dir/config.json] got \"") + key), std::string::npos)
        << key << ": " << error_of(object);
  }
}

TEST(LlamaConfig, NamesTheKeyOfAWrongValue) {
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "model_type"}) {
    auto object = tiny();
    object.erase(key);
    EXPECT_NE(error_of(object).find(key), std::string::npos) << key;
  }
  const std::pair<const char*, json> wrong[] = {
      {"hidden_size", "64"}, {"num_hidden_layers", 1.5}, {"vocab_size", UINT64_MAX}, {"rms_norm_eps", "small"},
      {"rope_theta", {1}},   {"tie_word_embeddings", 1}, {"rope_scaling", "linear"}};
  for (const auto& [key, value] : wrong) {
    auto object = tiny();
    object[key] = value;
    EXPECT_NE(error_of(object).find(key), std::string::npos) << key;
  }
  EXPECT_NE(error_of(json::array()), "");
}

TEST(LlamaConfig, RefusesImpossibleSizes) {
  auto indivisible = tiny();
  indivisible.erase("head_dim");
  indivisible["hidden_size"] = 66;
  EXPECT_NE(error_of(indivisible).find("head_dim"), std::string::npos);
  auto bad = LlamaConfig::preset("tiny");
  bad.kv_heads = 3;
  EXPECT_THROW(bad.validate(), ConfigError);
  bad = LlamaConfig::preset("tiny");
  bad.head_dim = 15;
  EXPECT_THROW(bad.validate(), ConfigError);
  bad = LlamaConfig::preset("tiny");
  bad.layers = 0;
  EXPECT_THROW(bad.validate(), ConfigError);
  bad = LlamaConfig::preset("tiny");
  bad.vocab = INT64_MAX;
  EXPECT_THROW(bad.validate(), ConfigError);
  bad = LlamaConfig::preset("tiny");
  bad.rope_theta = 0.0;
  EXPECT_THROW(bad.validate(), ConfigError);
  bad = LlamaConfig::preset("tiny");
  bad.norm_eps = -1.0;
  EXPECT_THROW(bad.validate(), ConfigError);
}

}  // namespace
}  // namespace sherd
