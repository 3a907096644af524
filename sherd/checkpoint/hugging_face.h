// A Hugging Face model folder: config.json with model.safetensors, or with model.safetensors.index.json and shards.
//
// Opening reads headers only (all shards' are checked); values are read by rows, when asked for.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "sherd/base/parameter_source.h"
#include "sherd/checkpoint/safetensors.h"

namespace sherd {

class HuggingFaceFolder {
 public:
  /// Throws ConfigError: no such folder, no config or weights in it, a shard that is missing or lacks a tensor which
  /// the index promises, a tensor that is in two shards.
  explicit HuggingFaceFolder(const std::string& path);

  const std::string& path() const { return path_; }
  const nlohmann::json& config() const { return config_; }

  /// All tensors in the folder, by name.
  std::vector<TensorShape> tensors() const;

  /// Compares what a model needs with what is here, and throws one ConfigError that names all tensors that are missing,
  /// unexpected or of another shape. Rotary inverse frequencies, and a stored lm_head of a tied model, are ignored.
  void check_shapes(const std::vector<TensorShape>& expected) const;

  /// Values from the files. Keeps them open for as long as the source lives, independently of this object.
  ParameterSource source() const;

 private:
  std::string path_;
  nlohmann::json config_;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> files_;  // by tensor name
};

/// Where the weights of a folder written by us are: for SafetensorsWriter::open on other ranks.
std::string hugging_face_weights(const std::string& folder);

/// Creates the folder if need be and writes config.json. Throws ConfigError, FaultError.
void write_hugging_face_config(const std::string& folder, const nlohmann::json& config);

/// Starts the folder's model.safetensors with the metadata that transformers insists on. The folder must exist.
SafetensorsWriter create_hugging_face_weights(const std::string& folder, const std::vector<TensorShape>& tensors);

}  // namespace sherd
