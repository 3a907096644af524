// What this process has open and mapped, as the kernel lists it.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sherd::testing {

/// One line of /proc/self/maps.
struct MapsLine {
  uintptr_t begin = 0, end = 0, offset = 0;
  std::string permissions, device;
  uint64_t inode = 0;
  std::string path;
};

inline std::vector<MapsLine> process_maps() {
  std::vector<MapsLine> result;
  std::ifstream file("/proc/self/maps");
  for (std::string text; std::getline(file, text);) {
    MapsLine line;
    char permissions[8] = {}, device[32] = {};
    int path = 0;
    if (std::sscanf(text.c_str(), "%lx-%lx %7s %lx %31s %lu %n", &line.begin, &line.end, permissions, &line.offset,
                    device, &line.inode, &path) < 6)
      continue;
    line.permissions = permissions;
    line.device = device;
    line.path = text.substr(static_cast<size_t>(path));
    result.push_back(line);
  }
  return result;
}

/// The mappings whose file's name contains `name`.
inline std::vector<MapsLine> mappings_of(std::string_view name) {
  std::vector<MapsLine> result;
  for (const auto& line : process_maps())
    if (line.path.find(name) != std::string::npos) result.push_back(line);
  return result;
}

/// The mapping that holds `address`; an empty line where there is none.
inline MapsLine mapping_at(const void* address) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  for (const auto& line : process_maps())
    if (line.begin <= value && value < line.end) return line;
  return {};
}

/// The open descriptors, each as "number -> what".
inline std::set<std::string> open_descriptors() {
  // Names first: the listing itself has a descriptor, which is gone when its link is read.
  std::vector<std::filesystem::path> links;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) links.push_back(entry.path());
  std::set<std::string> result;
  for (const auto& link : links) {
    char target[256] = {};
    if (readlink(link.c_str(), target, sizeof(target) - 1) > 0)
      result.insert(link.filename().string() + " -> " + target);
  }
  return result;
}

/// The number that the next descriptor will have.
inline int next_descriptor() {
  const int fd = dup(STDERR_FILENO);
  close(fd);
  return fd;
}

}  // namespace sherd::testing
