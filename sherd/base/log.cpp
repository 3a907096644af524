#include "sherd/base/log.h"

#include <cstdio>

namespace sherd {

void log_line(std::string_view text) {
  const std::string line = fmt::format("sherd: {}\n", text);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace sherd
