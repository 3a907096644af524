#include "sherd/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "sherd/base/error.h"

namespace sherd {
namespace fs = std::filesystem;
namespace {

constexpr const char* kWhere = "output";

/// Files and folders to be removed again, newest first, unless everything went well.
class Rollback {
 public:
  Rollback() = default;
  Rollback(const Rollback&) = delete;
  Rollback& operator=(const Rollback&) = delete;
  ~Rollback() {
    for (auto path = created_.rbegin(); path != created_.rend(); ++path) ::remove(path->c_str());
  }
  void add(fs::path path) { created_.push_back(std::move(path)); }
  void keep() { created_.clear(); }

 private:
  std::vector<fs::path> created_;
};

/// False with errno set when the text could not be written whole.
bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

[[noreturn]] void not_writable(const std::string& path, int error) {
  config_error(kWhere,
               "cannot write to the run folder '{}' ({}), expected a place where you may create files; try "
               "another \"output\"",
               path, std::strerror(error));
}

/// Creates the missing folders of `path`, outermost first.
void create_folders(const std::string& path, Rollback& rollback) {
  if (path.empty()) config_error(kWhere, "got an empty path, expected a folder for the run; try \"runs/first\"");
  std::vector<fs::path> missing;
  std::error_code ignored;
  fs::path folder = fs::absolute(path).lexically_normal();
  while (!fs::exists(fs::status(folder, ignored)) && folder.has_relative_path()) {
    if (folder.has_filename()) missing.push_back(folder);
    folder = folder.parent_path();
  }
  if (!fs::is_directory(folder, ignored)) {
    config_error(kWhere,
                 "cannot create the run folder '{}': '{}' is a file, expected a folder or nothing there; try "
                 "another \"output\", or move the file",
                 path, folder.string());
  }
  for (auto next = missing.rbegin(); next != missing.rend(); ++next) {
    if (::mkdir(next->c_str(), 0777) == 0) {
      rollback.add(*next);
    } else if (errno != EEXIST) {
      not_writable(path, errno);
    }
  }
}

/// Refuses a folder whose config.json some other program wrote: it would be overwritten.
void check_not_foreign(const std::string& path) {
  std::error_code ignored;
  if (fs::exists(path + "/config.json", ignored) && !fs::exists(path + "/metrics.jsonl", ignored)) {
    config_error(kWhere,
                 "the folder '{}' holds a config.json that is not of a training run (there is no metrics.jsonl "
                 "beside it), expected an earlier run or a new folder; try another \"output\"",
                 path);
  }
}

/// The opened folder, locked for as long as the descriptor lives.
UniqueFd lock_folder(const std::string& path) {
  UniqueFd folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) not_writable(path, errno);
  if (::flock(folder.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    config_error(kWhere,
                 "another run is writing to '{}', expected a folder of its own; try another \"output\", or "
                 "end the other run",
                 path);
  }
  return folder;
}

/// A new file `path`.partial with this content, to be renamed to `path` when all is well.
UniqueFd create_partial(const std::string& folder, const std::string& name, std::string_view content,
                        Rollback& rollback) {
  const std::string partial = folder + "/" + name + ".partial";
  UniqueFd fd(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666));
  if (!fd) not_writable(folder, errno);
  rollback.add(partial);
  if (!write_all(fd.get(), content)) not_writable(folder, errno);
  return fd;
}

void publish(const std::string& folder, const std::string& name) {
  const std::string target = folder + "/" + name;
  if (::rename((target + ".partial").c_str(), target.c_str()) != 0) not_writable(folder, errno);
}

}  // namespace

void RunFolder::check(const std::string& path) {
  Rollback rollback;
  create_folders(path, rollback);
  check_not_foreign(path);
  const UniqueFd lock = lock_folder(path);
  const UniqueFd file = create_partial(path, "config.json", "", rollback);
}

RunFolder::RunFolder(const std::string& path, const nlohmann::json& config) : path_(path) {
  Rollback rollback;
  create_folders(path, rollback);
  check_not_foreign(path);
  UniqueFd lock = lock_folder(path);
  const UniqueFd configuration = create_partial(path, "config.json", config.dump(2) + "\n", rollback);
  UniqueFd metrics = create_partial(path, "metrics.jsonl", "", rollback);
  publish(path, "metrics.jsonl");
  publish(path, "config.json");
  rollback.keep();
  folder_ = std::move(lock);
  metrics_ = std::move(metrics);
}

void RunFolder::append(const nlohmann::json& line) {
  if (!write_all(metrics_.get(), line.dump() + "\n")) fault_errno(kWhere, path_ + "/metrics.jsonl");
}

void RunFolder::write_loss_curve(std::string_view svg) {
  const std::string target = path_ + "/loss.svg";
  const UniqueFd file(::open((target + ".partial").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file || !write_all(file.get(), svg) || ::rename((target + ".partial").c_str(), target.c_str()) != 0) {
    fault_errno(kWhere, target);
  }
}

std::string RunFolder::begin_model() {
  std::string partial = unfinished_model_path(path_);
  std::error_code error;
  fs::remove_all(partial, error);
  if (::mkdir(partial.c_str(), 0777) != 0) fault_errno(kWhere, partial);
  return partial;
}

void RunFolder::finish_model() {
  const std::string partial = unfinished_model_path(path_);
  std::error_code error;
  if (fs::exists(fs::symlink_status(model_path(), error))) {
    // Exchanging the two leaves no moment without a model; where the file system cannot, the old one goes first.
    if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, model_path().c_str(), RENAME_EXCHANGE) == 0) {
      fs::remove_all(partial, error);
      return;
    }
    fs::remove_all(model_path(), error);
  }
  if (::rename(partial.c_str(), model_path().c_str()) != 0) fault_errno(kWhere, model_path());
}

}  // namespace sherd
