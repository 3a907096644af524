// After an abort: whoever waits hears of it, all recover, and every collective is right again. On every transport.
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <barrier>
#include <numeric>
#include <random>
#include <set>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using testing::Kind;
using testing::run_ranks;

constexpr int64_t kElements = 1001;

std::string recover_fault_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const FaultError& error) {
    return error.what();
  }
  return "no fault";
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// One of each collective, checked.
void expect_that_it_works(Transport& transport, int salt) {
  const int n = transport.size(), me = transport.rank();
  const auto value = [&](int rank) { return static_cast<double>(salt * 10 + rank); };
  const auto all = transport.exchange(std::array{value(me)});
  ASSERT_EQ(all.size(), static_cast<size_t>(n));
  for (int r = 0; r < n; ++r) ASSERT_EQ(all[static_cast<size_t>(r)], value(r)) << transport.name();
  const at::Tensor whole = at::full({kElements * n}, -1.0), received = at::full({kElements * n}, -1.0);
  const at::Tensor send = at::empty({kElements * n});
  for (int r = 0; r < n; ++r) send.narrow(0, kElements * r, kElements).fill_(value(me) * 10 + r);
  Pending gather = transport.all_gather(at::full({kElements}, value(me)), whole);
  Pending exchange = transport.all_to_all(send, received);
  exchange.wait();
  gather.wait();
  for (int r = 0; r < n; ++r) {
    ASSERT_TRUE(at::equal(whole.narrow(0, kElements * r, kElements), at::full({kElements}, value(r))));
    ASSERT_TRUE(at::equal(received.narrow(0, kElements * r, kElements), at::full({kElements}, value(r) * 10 + me)));
  }
}

class RecoverTest : public ::testing::TestWithParam<std::tuple<Kind, int>> {
 protected:
  int ranks() const { return std::get<1>(GetParam()); }
  Kind kind() const { return std::get<0>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Kinds, RecoverTest,
                         ::testing::Combine(::testing::ValuesIn(testing::kAllKinds), ::testing::Range(1, 5)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(std::get<0>(info.param)),
                                              std::get<1>(info.param));
                         });

TEST_P(RecoverTest, WithNothingAbortedItIsABarrier) {
  std::atomic<int> arrived{0};
  run_ranks(ranks(), kind(), [&](Transport& transport) {
    for (int round = 1; round <= 5; ++round) {
      std::this_thread::sleep_for(std::chrono::microseconds(500 * ((transport.rank() + round) % transport.size())));
      ++arrived;
      transport.recover();
      ASSERT_GE(arrived.load(), round * transport.size());
      expect_that_it_works(transport, round);
    }
  });
}

// In each cycle one rank aborts. The others wait in an exchange, an all-gather or an all-to-all, or do not come to it,
// or have started it and drop it, or still hold it when all have recovered.
TEST_P(RecoverTest, ManyTimesWithTheAbortAtEveryKindOfWait) {
  if (ranks() == 1) GTEST_SKIP() << "nobody to wait for";
  if (kind() == Kind::hosts && ranks() != 4) GTEST_SKIP() << "its collectives are gloo's; once more is enough";
  enum class Manner { waits, drops, holds, stays_away, count };
  constexpr int kManners = static_cast<int>(Manner::count), kCollectives = 3;
  std::barrier all_have_checked(ranks());  // an abort may reach a rank that is about to leave a collective
  run_ranks(ranks(), kind(), [&](Transport& transport) {
    const int n = transport.size(), me = transport.rank();
    std::mt19937 random(static_cast<uint32_t>(me));
    const at::Tensor shard = at::full({kElements * n}, 1.0), whole = at::full({kElements * n}, -1.0);
    const auto start = [&](int collective) -> Pending {
      if (collective == 0) return transport.all_gather(shard.narrow(0, 0, kElements), whole);
      if (collective == 1) return transport.all_to_all(shard, whole);
      barrier(transport);
      return {};
    };
    for (int cycle = 0; cycle < 2 * kManners * kCollectives; ++cycle) {
      const int aborter = cycle % n;
      const std::string told = fmt::format("rank {} gave up: cycle {}", aborter, cycle);
      const auto manner = static_cast<Manner>((cycle / kCollectives + me) % kManners);
      Pending held;
      if (me == aborter) {
        // At times all others sleep by then, at times they have not come.
        std::this_thread::sleep_for(std::chrono::milliseconds(cycle % 4 == 0 ? 20 : 0));
        transport.abort(fmt::format("cycle {}", cycle));
      } else if (manner != Manner::stays_away) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
        const std::string text = recover_fault_of([&] {
          Pending pending = start(cycle % kCollectives);
          if (manner == Manner::waits) pending.wait();
          if (manner == Manner::holds) held = std::move(pending);
        });
        if (manner == Manner::waits || text != "no fault") {
          EXPECT_TRUE(has(text, told)) << text;
        }
      }
      transport.recover();
      const std::string text = recover_fault_of([&] { held.wait(); });
      EXPECT_TRUE(text == "no fault" || has(text, "was broken off by an abort")) << text;
      expect_that_it_works(transport, cycle);
      all_have_checked.arrive_and_wait();
    }
  });
}

TEST_P(RecoverTest, WhereAllGiveUpAllHearOfTheFirst) {
  for (int attempt = 0; attempt < 5; ++attempt) {
    std::mutex mutex;
    std::set<std::string> heard;
    std::barrier all_have_come(ranks());
    run_ranks(ranks(), kind(), [&](Transport& transport) {
      all_have_come.arrive_and_wait();
      transport.abort(fmt::format("cause {}", transport.rank()));
      transport.abort("a second one");
      if (transport.size() > 1) {
        const std::string text = recover_fault_of([&] { barrier(transport); });
        const std::lock_guard lock(mutex);
        heard.insert(text);
      }
      transport.recover();
      expect_that_it_works(transport, attempt);
    });
    if (ranks() == 1) return;
    ASSERT_EQ(heard.size(), 1) << "they disagree";
    EXPECT_TRUE(has(*heard.begin(), "gave up: cause ")) << *heard.begin();
  }
}

TEST_P(RecoverTest, AfterItAnAbortIsHeardAgain) {
  if (ranks() == 1) GTEST_SKIP() << "nobody to tell";
  run_ranks(ranks(), kind(), [](Transport& transport) {
    for (int round = 0; round < 4; ++round) {
      // The aborting rank is out of recover() first, and gives up at once.
      if (transport.rank() == 0) {
        transport.abort(fmt::format("round {}", round));
      } else {
        const std::string text = recover_fault_of([&] { barrier(transport); });
        EXPECT_TRUE(has(text, fmt::format("rank 0 gave up: round {}", round))) << text;
        EXPECT_EQ(transport.heard(), text);
      }
      transport.recover();
    }
    expect_that_it_works(transport, 0);
  });
}

// Whoever uses the ranks next, here a subgroup of theirs, makes them work again.
TEST_P(RecoverTest, ResumeIsThatOfWhoeverGaveUpOrHeardOfIt) {
  run_ranks(ranks(), kind(), [](Transport& transport) {
    std::vector<int> all(static_cast<size_t>(transport.size()));
    std::iota(all.begin(), all.end(), 0);
    const auto group = transport.subgroup(all);
    Transport& next = transport.size() > 1 ? *group : transport;  // of one rank there is no family
    next.resume();
    EXPECT_EQ(next.recoveries(), 0u);
    for (uint64_t round = 1; round <= 3; ++round) {
      if (transport.rank() == 0) {
        transport.abort("it gives up");
      } else {
        EXPECT_TRUE(has(recover_fault_of([&] { barrier(transport); }), "it gives up"));
      }
      next.resume();
      EXPECT_EQ(next.recoveries(), round);
      EXPECT_EQ(transport.recoveries(), round);
      transport.resume();
      EXPECT_EQ(transport.recoveries(), round);
      expect_that_it_works(next, static_cast<int>(round));
      expect_that_it_works(transport, static_cast<int>(round));
    }
  });
}

TEST_P(RecoverTest, WhereOneRankDoesNotComeItFailsForAllAndForGood) {
  if (ranks() == 1) GTEST_SKIP() << "nobody to wait for";
  std::atomic<int> failed{0};
  run_ranks(
      ranks(), kind(),
      [&](std::shared_ptr<Transport> transport) {
        barrier(*transport);
        if (transport->rank() == 1) {
          transport->abort("and does not come");
          while (failed < transport->size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        EXPECT_NE(recover_fault_of([&] { transport->recover(); }), "no fault") << transport->rank();
        ++failed;
        EXPECT_NE(recover_fault_of([&] { barrier(*transport); }), "no fault") << transport->rank();
      },
      std::chrono::milliseconds(400));
  EXPECT_EQ(failed, ranks());
}

class RecoverFaults : public ::testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, RecoverFaults, ::testing::Values(Kind::host, Kind::gloo, Kind::hosts),
                         [](const auto& info) { return testing::name_of(info.param); });

TEST_P(RecoverFaults, ADeadRankIsNamed) {
  const auto statuses = testing::run_processes(3, [](const World& world) {
    ThreadGroup none(1);
    const auto transport = testing::make_transport(world, GetParam(), none);
    barrier(*transport);
    if (world.rank == 1) {
      transport->abort("this is the end");
      raise(SIGKILL);
    }
    EXPECT_NE(recover_fault_of([&] { barrier(*transport); }), "no fault");
    const std::string text = recover_fault_of([&] { transport->recover(); });
    EXPECT_TRUE(has(text, "rank 1 died") || has(text, "gave up waiting")) << text;
  });
  EXPECT_EQ(statuses[0], 0);
  EXPECT_EQ(statuses[2], 0);
}

}  // namespace
}  // namespace sherd
