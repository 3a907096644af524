#include "sherd/kernels/parallel.h"

#include <omp.h>

#include <algorithm>

namespace sherd::kernels {

void parallel_ranges(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  constexpr int64_t kAligned = 16;  // pieces begin on a cache line where the range does
  const int64_t most = std::max<int64_t>(1, std::min<int64_t>(omp_get_max_threads(), n / std::max<int64_t>(1, grain)));
  if (most == 1 || omp_in_parallel()) return body(0, n);
#pragma omp parallel
  {
    // All threads of the pool take part, as in torch: a team of another size would make the runtime rebuild it.
    const int64_t pieces = std::min<int64_t>(most, omp_get_num_threads());
    const int64_t piece = ((n + pieces - 1) / pieces + kAligned - 1) / kAligned * kAligned;
    const int64_t begin = std::min(n, omp_get_thread_num() * piece);
    const int64_t end = std::min(n, begin + piece);
    if (begin < end) body(begin, end);
  }
}

}  // namespace sherd::kernels
