#include "sherd/kernels/parallel.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

namespace sherd::kernels {
namespace {

struct Pieces {
  std::vector<int> visits;
  size_t count = 0;
  std::set<std::thread::id> threads;
};

Pieces pieces_of(int64_t n, int64_t grain) {
  Pieces pieces{std::vector<int>(static_cast<size_t>(n)), 0, {}};
  std::mutex mutex;
  parallel_ranges(n, grain, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    ++pieces.count;
    pieces.threads.insert(std::this_thread::get_id());
    for (int64_t i = begin; i < end; ++i) ++pieces.visits[static_cast<size_t>(i)];
  });
  return pieces;
}

TEST(ParallelRanges, CoverEverythingOnceOnTorchsThreads) {
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 3, 4}) {
    at::set_num_threads(threads);
    for (const int64_t n : {0, 1, 15, 16, 17, 99, 1000, 1001}) {
      for (const int64_t grain : {1, 100, 5000}) {
        const Pieces pieces = pieces_of(n, grain);
        EXPECT_EQ(pieces.visits, std::vector<int>(static_cast<size_t>(n), 1));
        EXPECT_LE(static_cast<int64_t>(pieces.count), std::max<int64_t>(1, std::min<int64_t>(threads, n / grain)));
      }
    }
    EXPECT_EQ(pieces_of(4096, 16).threads.size(), static_cast<size_t>(threads));
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace sherd::kernels
