// The folder that a training run leaves behind:
//   config.json     the effective configuration, defaults included
//   metrics.jsonl   one JSON object a step, flushed line by line
//   model/          the final weights as a Hugging Face folder
//   loss.svg        the loss curve
//
// Opened by rank 0 only. While a RunFolder lives it holds a lock on the folder, so that two runs cannot mix their
// lines. A run of the same name is overwritten: configuration and metrics at once, the weights only when the new ones
// are whole (begin_model, finish_model), so that at every moment `model/` is one complete model or absent.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "sherd/base/unique_fd.h"

namespace sherd {

class RunFolder {
 public:
  /// Throws ConfigError unless the folder can be created and written. Leaves nothing behind.
  static void check(const std::string& path);

  /// Creates the folder with config.json and an empty metrics.jsonl. Throws ConfigError, and then leaves no new file.
  RunFolder(const std::string& path, const nlohmann::json& config);

  /// Adds one line to metrics.jsonl; it is in the file when this returns. Throws FaultError.
  void append(const nlohmann::json& line);

  /// Writes loss.svg. Throws FaultError.
  void write_loss_curve(std::string_view svg);

  /// Where begin_model() makes its folder, for the other ranks of a run.
  static std::string unfinished_model_path(const std::string& path) { return path + "/model.partial"; }
  /// An empty folder to save the final weights into. Throws FaultError.
  std::string begin_model();

  /// Puts what was saved there in the place of model/. Throws FaultError.
  void finish_model();

  const std::string& path() const { return path_; }
  std::string model_path() const { return path_ + "/model"; }

 private:
  std::string path_;
  UniqueFd folder_;  // holds the lock
  UniqueFd metrics_;
};

}  // namespace sherd
