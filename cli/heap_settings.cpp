#include "cli/heap_settings.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace sherd {
namespace {

constexpr const char* kVariable = "GLIBC_TUNABLES";
constexpr const char* kSettings =
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296";

}  // namespace

HeapSettings set_heap_environment() {
  const char* before = std::getenv(kVariable);
  const std::string user = before == nullptr ? "" : before;
  if (user.find("glibc.malloc.") != std::string::npos) return HeapSettings::as_they_were;
  setenv(kVariable, (user.empty() ? kSettings : user + ":" + kSettings).c_str(), 1);
  return HeapSettings::changed;
}

void restart_program(char** argv) { execv("/proc/self/exe", argv); }

}  // namespace sherd
