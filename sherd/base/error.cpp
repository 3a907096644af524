#include "sherd/base/error.h"

#include <cerrno>
#include <cstring>

namespace sherd {

void fault_errno(std::string_view where, std::string_view what) {
  const int code = errno;
  fault(where, "{}: {}", what, std::strerror(code));
}

void detail::check_failed(const char* condition, const char* file, int line) {
  throw std::logic_error(fmt::format("[sherd] internal check failed: {} ({}:{})", condition, file, line));
}

}  // namespace sherd
