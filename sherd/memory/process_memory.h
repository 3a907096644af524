// What the operating system says this process uses.
#pragma once

#include <cstdint>

namespace sherd {

/// The proportional set size of this process in bytes: shared pages are divided by the number of their users, so the
/// sum over ranks counts each page once. Reads /proc/self/smaps_rollup (walks the page tables: about 1 ms per 10 GB of
/// huge pages, 1 ms per 100 MB of small ones). 0 where the file is missing.
int64_t proportional_memory();

}  // namespace sherd
