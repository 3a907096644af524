// How much memory the system would still give us.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace sherd {

/// The smallest of what /proc/meminfo calls available and what each memory control group above this process (version 2,
/// or the version 1 that containers see) leaves, file caches counted as free. Nothing where no file tells. `root` is
/// for tests. Reads a few small files.
std::optional<int64_t> available_memory(const std::filesystem::path& root = "/");

}  // namespace sherd
