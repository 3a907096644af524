// A range split over the threads that torch's own operators use on the calling thread (at::set_num_threads).
//
// torch's parallel_for is a header that is serial unless its user is compiled with OpenMP; this one is compiled with it
// once, and runs on the OpenMP runtime that torch ships, so that both share one pool of threads.
#pragma once

#include <cstdint>
#include <functional>

namespace sherd::kernels {

/// Calls body(begin, end) for pieces that cover [0, n): at most one a thread, each of at least `grain` but the last;
/// on this thread alone where that is all there is, or inside another parallel region. `body` does not throw.
void parallel_ranges(int64_t n, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace sherd::kernels
