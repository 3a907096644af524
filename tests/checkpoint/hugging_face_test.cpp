#include "sherd/checkpoint/hugging_face.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/checkpoint/temporary_folder.h"

namespace sherd {
namespace {

void write_file(const std::string& path, const std::vector<TensorShape>& tensors, float value) {
  auto writer = SafetensorsWriter::create(path, tensors);
  for (const auto& tensor : tensors) {
    const std::vector<float> values(1000, value);
    writer.write_rows(tensor.name, 0, tensor.shape[0], values.data());
  }
  writer.commit();
}

std::string open_error(const TemporaryFolder& folder) {
  return error_of<ConfigError>([&] { HuggingFaceFolder(folder.path()); });
}

TEST(HuggingFaceFolder, ReadsTheGoldenModel) {
  const HuggingFaceFolder folder(std::string(SHERD_GOLDEN) + "/tiny");
  EXPECT_EQ(folder.config()["hidden_size"], 64);
  EXPECT_EQ(folder.tensors().size(), 21U);
  float value = 0;
  folder.source()({"model.norm.weight", 63, 1, 1}, &value);
  EXPECT_EQ(value, 1.0F);
  EXPECT_THROW(folder.source()({"model.norm.bias", 0, 1, 1}, &value), ConfigError);
}

TEST(HuggingFaceFolder, ReadsShards) {
  const TemporaryFolder folder;
  write_bytes(folder / "config.json", "{}");
  write_file(folder / "model-1.safetensors", {{"a", {2, 3}}, {"b", {4}}}, 1.0F);
  write_file(folder / "model-2.safetensors", {{"c", {5}}}, 2.0F);
  write_bytes(
      folder / "model.safetensors.index.json",
      R"({"metadata":{},"weight_map":{"a":"model-1.safetensors","b":"model-1.safetensors","c":"model-2.safetensors"}})");
  const auto source = HuggingFaceFolder(folder.path()).source();  // outlives the folder
  float values[2];
  source({"b", 1, 2, 1}, values);
  EXPECT_EQ(values[1], 1.0F);
  source({"c", 3, 2, 1}, values);
  EXPECT_EQ(values[1], 2.0F);
}

TEST(HuggingFaceFolder, NamesWhatIsWrongWithAFolder) {
  const TemporaryFolder folder;
  const auto index = [&](const std::string& map) {
    write_bytes(folder / "model.safetensors.index.json", R"({"weight_map":)" + map + "}");
  };
  EXPECT_NE(error_of<ConfigError>([&] { HuggingFaceFolder(folder / "none"); }).find("no such folder"),
            std::string::npos);
  EXPECT_NE(open_error(folder).find("without config.json"), std::string::npos);
  write_bytes(folder / "config.json", "{\"a\"");
  EXPECT_NE(open_error(folder).find("not JSON"), std::string::npos);
  write_bytes(folder / "config.json", "{}");
  EXPECT_NE(open_error(folder).find("without model.safetensors"), std::string::npos);
  write_bytes(folder / "model.safetensors.index.json", "[]");
  EXPECT_NE(open_error(folder).find("weight_map"), std::string::npos);
  index(R"({"a":"1.safetensors"})");
  EXPECT_NE(open_error(folder).find("without its shard \"1.safetensors\""), std::string::npos);
  write_file(folder / "1.safetensors", {{"b", {2}}}, 0);
  EXPECT_NE(open_error(folder).find("tensor \"a\": got no such tensor in \"1.safetensors\""), std::string::npos);
  write_file(folder / "2.safetensors", {{"b", {2}}}, 0);
  index(R"({"b":"1.safetensors","c":"2.safetensors"})");
  EXPECT_NE(open_error(folder).find("tensor \"b\", which is in another shard too"), std::string::npos);
  index(R"({"b":"../1.safetensors"})");
  EXPECT_NE(open_error(folder).find("expected the name of a file"), std::string::npos);
  index(R"({"b":7})");
  EXPECT_NE(open_error(folder).find("tensor \"b\": got 7"), std::string::npos);
}

TEST(HuggingFaceFolder, ComparesShapes) {
  const TemporaryFolder folder;
  write_bytes(folder / "config.json", "{}");
  write_file(folder / "model.safetensors",
             {{"a", {2}}, {"b", {3}}, {"lm_head.weight", {2}}, {"model.layers.0.self_attn.rotary_emb.inv_freq", {4}}},
             0);
  const std::vector<TensorShape> expected = {{"a", {2}}, {"b", {3}}};
  const auto error = [&](const std::vector<TensorShape>& tensors) {
    return error_of<ConfigError>([&] { HuggingFaceFolder(folder.path()).check_shapes(tensors); });
  };
  EXPECT_EQ(error({{"a", {2}}, {"b", {3}}, {"lm_head.weight", {2}}}), "");
  EXPECT_NE(error(expected).find("; unexpected: lm_head.weight"), std::string::npos);
  const auto all = error({{"a", {2}}, {"b", {1, 3}}, {"d", {1}}, {"e", {1}}});
  EXPECT_NE(all.find("; missing: d, e; unexpected: lm_head.weight; of another shape: b (got [3], expected [1, 3])"),
            std::string::npos)
      << all;
  write_bytes(folder / "config.json", R"({"tie_word_embeddings": true})");
  EXPECT_EQ(error(expected), "");
}

TEST(HuggingFaceFolder, WritesAFolder) {
  const TemporaryFolder folder;
  const auto path = folder / "deep/model";
  write_hugging_face_config(path, {{"model_type", "llama"}});
  auto writer = create_hugging_face_weights(path, {{"a", {2}}});
  const std::vector<float> values = {1.0F, 2.0F};
  SafetensorsWriter::open(hugging_face_weights(path)).write_rows("a", 0, 2, values.data());
  writer.commit();
  const HuggingFaceFolder read(path);
  EXPECT_EQ(read.config()["model_type"], "llama");
  float value = 0;
  read.source()({"a", 1, 1, 1}, &value);
  EXPECT_EQ(value, 2.0F);
  EXPECT_EQ(SafetensorsFile(hugging_face_weights(path)).header().metadata.at("format"), "pt");
  EXPECT_NE(error_of<ConfigError>([&] { write_hugging_face_config("/proc/no/such", {}); }).find("/proc/no/such"),
            std::string::npos);
}

}  // namespace
}  // namespace sherd
