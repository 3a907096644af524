// How the C library's allocator treats a training step's tensors, from inside a running process (cli/heap_settings does
// it before one starts).
#pragma once

namespace sherd::python {

/// Tells glibc's malloc to keep what is freed, up to 2 GiB at the top of the heap, for the next step: else each step
/// gets its activations page by page from the kernel. Leaves it alone where the user has set anything for malloc
/// (GLIBC_TUNABLES, MALLOC_*_). Other allocators do not listen.
void keep_freed_memory();

/// Gives whole pages of what has been freed back to the kernel, also between blocks that are in use.
void return_freed_memory();

}  // namespace sherd::python
