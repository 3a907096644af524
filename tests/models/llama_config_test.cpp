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
