#include "sherd/comm/available_memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace sherd {
namespace {

namespace fs = std::filesystem;

std::optional<int64_t> number_in(const fs::path& file) {
  int64_t value = 0;
  if (std::ifstream in(file); in >> value) return value;
  return std::nullopt;  // no such file, or "max"
}

/// The number after `name` in a file of lines "name number".
std::optional<int64_t> number_after(const fs::path& file, const std::string& name) {
  std::ifstream in(file);
  for (std::string word; in >> word;) {
    int64_t value = 0;
    if (word == name && in >> value) return value;
  }
  return std::nullopt;
}

std::optional<int64_t> smaller(std::optional<int64_t> a, std::optional<int64_t> b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

std::optional<int64_t> left_in(const fs::path& group, const char* limit_file, const char* used_file) {
  const auto limit = number_in(group / limit_file), used = number_in(group / used_file);
  if (!limit || !used) return std::nullopt;
  const int64_t cached = number_after(group / "memory.stat", "inactive_file").value_or(0);
  return std::max<int64_t>(0, *limit - *used + cached);
}

}  // namespace

std::optional<int64_t> available_memory(const fs::path& root) {
  std::optional<int64_t> result;
  if (const auto kib = number_after(root / "proc/meminfo", "MemAvailable:")) result = *kib * 1024;
  const fs::path groups = root / "sys/fs/cgroup";
  fs::path mine;  // "0::/a/b"
  std::ifstream membership(root / "proc/self/cgroup");
  for (std::string line; std::getline(membership, line);)
    if (line.starts_with("0::/")) mine = line.substr(4);
  for (fs::path group = groups / mine;; group = group.parent_path()) {
    result = smaller(result, left_in(group, "memory.max", "memory.current"));
    if (group == groups || group == groups / "" || !group.has_relative_path()) break;
  }
  return smaller(result, left_in(groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"));
}

}  // namespace sherd
