// The tests' own ranks: what run_ranks and run_processes promise.
#include "tests/support/ranks.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using testing::Kind;
using testing::run_processes;
using testing::run_ranks;

TEST(Ranks, EveryRankRunsOnceWithItsTransport) {
  for (const Kind kind : testing::kAllKinds) {
    for (const int n : {1, 2, 4}) {
      std::vector<std::atomic<int>> ran(static_cast<size_t>(n));
      run_ranks(n, kind, [&](Transport& transport) {
        EXPECT_EQ(transport.size(), n);
        EXPECT_EQ(transport.name(), n == 1 ? "solo" : testing::name_of(kind));
        EXPECT_EQ(at::get_num_threads(), 1);
        ++ran[static_cast<size_t>(transport.rank())];
      });
      for (const auto& count : ran) EXPECT_EQ(count, 1);
    }
  }
}

TEST(Ranks, TheFirstExceptionReachesTheCallerAndFreesTheOthers) {
  for (const Kind kind : testing::kAllKinds) {
    SCOPED_TRACE(testing::name_of(kind));
    const auto start = std::chrono::steady_clock::now();
    try {
      run_ranks(3, kind, [](std::shared_ptr<Transport> transport) {
        barrier(*transport);
        if (transport->rank() == 1) config_error("test", "rank 1 has enough");
        barrier(*transport);
      });
      FAIL() << "nothing was thrown";
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "[test] rank 1 has enough");
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  }
}

TEST(Ranks, ProcessesReturnTheirEnds) {
  const auto statuses = run_processes(4, [](const World& world) {
    if (world.rank == 1) fault("test", "this message is meant to be seen");
    if (world.rank == 2) raise(SIGKILL);
    if (world.rank == 3) raise(SIGSTOP);
  });
  EXPECT_TRUE(WIFEXITED(statuses[0]) && WEXITSTATUS(statuses[0]) == testing::kRankPassed);
  EXPECT_TRUE(WIFEXITED(statuses[1]) && WEXITSTATUS(statuses[1]) == testing::kRankThrew);
  EXPECT_TRUE(WIFSIGNALED(statuses[2]) && WTERMSIG(statuses[2]) == SIGKILL);
  EXPECT_TRUE(WIFSIGNALED(statuses[3]) && WTERMSIG(statuses[3]) == SIGKILL);
}

}  // namespace
}  // namespace sherd
