#include "sherd/data/find_files.h"

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "sherd/base/error.h"

namespace sherd {
namespace {

namespace fs = std::filesystem;

bool is_hidden(const fs::path& path) { return path.filename().native().starts_with('.'); }
bool is_glob(const std::string& text) { return text.find_first_of("*?[") != std::string::npos; }
bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}
bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

/// The entries of a folder. `folder` may be empty: the current one, whose entries then have no folder in front.
std::vector<fs::path> list(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code failure;
  fs::directory_iterator entry(folder.empty() ? fs::path(".") : folder, failure);
  for (; !failure && entry != fs::directory_iterator(); entry.increment(failure)) {
    entries.push_back(folder / entry->path().filename());
  }
  if (failure) {
    config_error("data", "got the folder {} ({}), expected one that can be listed; try chmod u+rx, or a narrower glob",
                 folder.native(), failure.message());
  }
  return entries;
}

/// All folders below `folder`, itself included, without hidden ones and without following links.
void add_folders_below(const fs::path& folder, std::vector<fs::path>& folders) {
  folders.push_back(folder);
  for (const fs::path& entry : list(folder)) {
    std::error_code ignored;
    if (!is_hidden(entry) && fs::symlink_status(entry, ignored).type() == fs::file_type::directory) {
      add_folders_below(entry, folders);
    }
  }
}

void add_files_below(const fs::path& folder, std::set<std::string>& files) {
  std::vector<fs::path> folders;
  add_folders_below(folder, folders);
  for (const fs::path& each : folders) {
    for (const fs::path& entry : list(each)) {
      if (!is_hidden(entry) && is_file(entry)) files.insert(entry.native());
    }
  }
}

/// The paths that match the first parts of a glob, taken a part further.
std::vector<fs::path> match_part(const std::vector<fs::path>& paths, const std::string& part) {
  std::vector<fs::path> matches;
  for (const fs::path& path : paths) {
    if (!path.empty() && !is_folder(path)) continue;
    if (part == "**") {
      add_folders_below(path, matches);
    } else if (is_glob(part)) {
      for (const fs::path& entry : list(path)) {
        if (::fnmatch(part.c_str(), entry.filename().c_str(), FNM_PERIOD) == 0) matches.push_back(entry);
      }
    } else {
      std::error_code ignored;
      if (fs::exists(path / part, ignored)) matches.push_back(path / part);
    }
  }
  std::sort(matches.begin(), matches.end());
  matches.erase(std::unique(matches.begin(), matches.end()), matches.end());  // "**/**" meets a folder twice
  return matches;
}

std::set<std::string> expand(const std::string& pattern) {
  std::set<std::string> files;
  const fs::path path = fs::path(pattern).lexically_normal();
  if (is_file(path)) return {path.native()};
  if (is_folder(path)) {
    add_files_below(path, files);
    return files;
  }
  if (!is_glob(pattern)) return files;
  std::vector<fs::path> matches{path.root_path()};
  for (const fs::path& part : path.relative_path()) {
    if (!part.empty()) matches = match_part(matches, part.native());
  }
  for (const fs::path& match : matches) {
    if (is_file(match)) files.insert(match.native());
    if (is_folder(match)) add_files_below(match, files);
  }
  return files;
}

}  // namespace

std::vector<std::string> find_files(const std::vector<std::string>& patterns) {
  std::vector<std::string> found;
  std::set<std::string> seen;
  for (const std::string& pattern : patterns) {
    const std::set<std::string> files = expand(pattern);
    if (files.empty()) {
      config_error("data",
                   "got '{}', which names no file (in {}), expected a file, folder or glob; try an absolute path",
                   pattern, fs::current_path().native());
    }
    for (const std::string& file : files) {
      if (seen.insert(file).second) found.push_back(file);
    }
  }
  return found;
}

}  // namespace sherd
