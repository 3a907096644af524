// Errors. Two kinds reach a user, and both read "[where] got X, expected Y; try Z".
//
// ConfigError: a mistake of the user, raised before any work is done (the command exits with 2).
// FaultError:  something broke in mid-run: a peer died, a disk failed (the command exits with 1).
// A broken invariant of sherd itself is neither: use SHERD_CHECK, which says where.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace sherd {

class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class FaultError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws ConfigError("[where] <formatted message>").
template <class... Args>
[[noreturn]] void config_error(std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  throw ConfigError(fmt::format("[{}] {}", where, fmt::format(format, std::forward<Args>(args)...)));
}

/// Throws FaultError("[where] <formatted message>").
template <class... Args>
[[noreturn]] void fault(std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  throw FaultError(fmt::format("[{}] {}", where, fmt::format(format, std::forward<Args>(args)...)));
}

/// FaultError with the text of the current errno appended.
[[noreturn]] void fault_errno(std::string_view where, std::string_view what);

/// What torch's errors say, without the stack that they append.
inline std::string first_line(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

namespace detail {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}

}  // namespace sherd

/// Ends with std::logic_error when an invariant of sherd does not hold.
#define SHERD_CHECK(condition) ((condition) ? void(0) : ::sherd::detail::check_failed(#condition, __FILE__, __LINE__))
