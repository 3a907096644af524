// How the C library's allocator treats a training step's tensors.
//
// By default it gives large blocks back to the kernel as soon as they are freed: each step then gets its activations
// from the kernel page by page, zeroed again (about 13 000 page faults a rank and step with the preset `small`, a
// twelfth of the step). Told to keep them, and to ask for huge pages, it faults only in the first steps. The settings
// (GLIBC_TUNABLES, glibc 2.35 or later; others ignore them) are read when a process starts.
#pragma once

namespace sherd {

enum class HeapSettings { changed, as_they_were };

/// Puts the settings into the environment of this process, for those that it starts. Leaves what the user has set for
/// malloc there.
HeapSettings set_heap_environment();

/// Starts this program anew in this process, with the environment as it is now. Returns only where that is refused.
void restart_program(char** argv);

}  // namespace sherd
