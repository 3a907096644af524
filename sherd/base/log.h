// One line to standard error, whole, so that the lines of several ranks do not mix.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace sherd {

/// Writes "sherd: <text>\n" in one write.
void log_line(std::string_view text);

template <class... Args>
void log(fmt::format_string<Args...> format, Args&&... args) {
  log_line(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace sherd
