#include "sherd/checkpoint/hugging_face.h"

#include <fmt/ranges.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

using Files = std::map<std::string, std::shared_ptr<const SafetensorsFile>>;

json read_json(const std::string& path) {
  try {
    return json::parse(read_text(path));
  } catch (const json::exception& error) {
    config_error(path, "got a file that is not JSON ({}), expected JSON; try downloading it again", error.what());
  }
}

void add_file(Files& files, const std::string& path) {
  const auto file = std::make_shared<const SafetensorsFile>(path);
  for (const auto& [name, tensor] : file->header().tensors) {
    if (!files.emplace(name, file).second)
      config_error(
          path, "got tensor \"{}\", which is in another shard too, expected it once; try downloading the model again",
          name);
  }
}

// {"weight_map": {"tensor": "file", ...}}
Files open_shards(const fs::path& folder, const std::string& index_path) {
  const json index = read_json(index_path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    config_error(index_path, "got no \"weight_map\", expected the index of a sharded model; try downloading it again");
  std::map<std::string, std::string> shard_of;
  std::set<std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || fs::path(shard.get<std::string>()).filename() != shard.get<std::string>())
      config_error(index_path,
                   "tensor \"{}\": got {}, expected the name of a file in the folder; try downloading it again", name,
                   shard.dump());
    shard_of[name] = shard.get<std::string>();
    shards.insert(shard_of[name]);
  }
  Files files;
  for (const auto& shard : shards) {
    if (!fs::exists(folder / shard))
      config_error(index_path,
                   "got a model without its shard \"{}\", expected all of {} shards; try downloading the model again",
                   shard, shards.size());
    add_file(files, (folder / shard).string());
  }
  for (const auto& [name, shard] : shard_of) {
    const auto found = files.find(name);
    if (found == files.end() || found->second->path() != (folder / shard).string())
      config_error(
          index_path,
          "tensor \"{}\": got no such tensor in \"{}\", where the index puts it; try downloading the model again", name,
          shard);
  }
  return files;
}

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

// The first few of a list of names, and how many more there are.
std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  const size_t shown = std::min(kShown, names.size());
  auto text = fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

}  // namespace

HuggingFaceFolder::HuggingFaceFolder(const std::string& path) : path_(path) {
  const fs::path folder(path);
  if (!fs::is_directory(folder))
    config_error(
        path, "got no such folder, expected a Hugging Face model (config.json, model.safetensors); try another path");
  if (!fs::exists(folder / "config.json"))
    config_error(path,
                 "got a folder without config.json, expected a model; try the folder that save_pretrained() wrote");
  config_ = read_json((folder / "config.json").string());
  const auto single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  if (fs::exists(single)) {
    add_file(files_, single.string());
  } else if (fs::exists(index)) {
    files_ = open_shards(folder, index.string());
  } else {
    config_error(path,
                 "got a folder without model.safetensors or model.safetensors.index.json; try saving the model "
                 "with save_pretrained(safe_serialization=True)");
  }
}

std::vector<TensorShape> HuggingFaceFolder::tensors() const {
  std::vector<TensorShape> all;
  for (const auto& [name, file] : files_) {
    const StoredTensor& stored = file->header().tensors.at(name);
    all.push_back({name, stored.shape, stored.dtype});
  }
  return all;
}

void HuggingFaceFolder::check_shapes(const std::vector<TensorShape>& expected) const {
  std::map<std::string, std::vector<int64_t>> wanted;
  for (const auto& tensor : expected) wanted[tensor.name] = tensor.shape;
  const bool tied =
      config_.is_object() && config_.contains("tie_word_embeddings") && config_["tie_word_embeddings"] == true;
  std::vector<std::string> missing, unexpected, reshaped;
  for (const auto& [name, shape] : wanted) {
    if (!files_.contains(name)) missing.push_back(name);
  }
  for (const auto& [name, shape, dtype] : tensors()) {
    const auto found = wanted.find(name);
    if (found != wanted.end()) {
      if (found->second != shape)
        reshaped.push_back(fmt::format("{} (got {}, expected {})", name, shape_text(shape), shape_text(found->second)));
    } else if (!name.ends_with("rotary_emb.inv_freq") && !(tied && name == "lm_head.weight")) {
      unexpected.push_back(name);
    }
  }
  if (missing.empty() && unexpected.empty() && reshaped.empty()) return;
  std::string text;
  if (!missing.empty()) text += "; missing: " + listed(missing);
  if (!unexpected.empty()) text += "; unexpected: " + listed(unexpected);
  if (!reshaped.empty()) text += "; of another shape: " + listed(reshaped);
  config_error(
      path_,
      "got weights that are not those of the model in config.json{}; try the config.json that belongs to the weights",
      text);
}

ParameterSource HuggingFaceFolder::source() const {
  return [files = files_, path = path_](const RowRange& range, float* out) {
    const auto found = files.find(range.fqn);
    if (found == files.end()) config_error(path, "got no tensor \"{}\" in the folder", range.fqn);
    found->second->read_rows(range, out);
  };
}

std::string hugging_face_weights(const std::string& folder) {
  return (fs::path(folder) / "model.safetensors").string();
}

void write_hugging_face_config(const std::string& folder, const json& config) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) config_error(folder, "cannot be created: {}; try another folder", error.message());
  write_text((fs::path(folder) / "config.json").string(), config.dump(2) + "\n");
}

SafetensorsWriter create_hugging_face_weights(const std::string& folder, const std::vector<TensorShape>& tensors) {
  return SafetensorsWriter::create(hugging_face_weights(folder), tensors, {{"format", "pt"}});
}

}  // namespace sherd
