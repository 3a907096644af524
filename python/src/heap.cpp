#include "python/src/heap.h"

#include <malloc.h>

#include <cstdlib>
#include <limits>
#include <string_view>

namespace sherd::python {
namespace {

constexpr int kLargestBlock = 1 << 30;  // larger ones come from the kernel, and go back

bool user_has_set_malloc() {
  for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"})
    if (std::getenv(name) != nullptr) return true;
  const char* tunables = std::getenv("GLIBC_TUNABLES");
  return tunables != nullptr && std::string_view(tunables).find("glibc.malloc.") != std::string_view::npos;
}

}  // namespace

void keep_freed_memory() {
  if (user_has_set_malloc()) return;
  mallopt(M_MMAP_THRESHOLD, kLargestBlock);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

void return_freed_memory() { malloc_trim(0); }

}  // namespace sherd::python
