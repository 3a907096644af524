// Faults on the host segment: peers that die, stop, give up or cannot be reached; and that nothing is left behind.
#include "sherd/comm/host_segment.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "sherd/base/error.h"
#include "tests/support/process_maps.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using std::chrono::steady_clock;
using testing::Kind;
using testing::run_processes;
using testing::run_ranks;

std::string fault_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const FaultError& error) {
    return error.what();
  }
  return "no fault";
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

HostSegment& host_of(Transport& transport) { return transport.host_memory(); }

TEST(HostSegment, WaitForReturnsAtOnceWhenReady) {
  run_ranks(2, Kind::host, [](Transport& transport) {
    int asked = 0;
    host_of(transport).wait_for(
        1 - transport.rank(), [&] { return ++asked == 3; }, "the third question");
    EXPECT_EQ(asked, 3);
  });
}

TEST(HostSegment, ATimeOutSaysWhoWaitedForWhomAndWhat) {
  std::atomic<bool> waited{false};
  run_ranks(
      2, Kind::host,
      [&](Transport& transport) {
        barrier(transport);
        if (transport.rank() == 1) {
          while (!waited) std::this_thread::sleep_for(std::chrono::milliseconds(5));
          EXPECT_TRUE(contains(fault_of([&] { barrier(transport); }), "rank 0 gave up: rank 0 waited 0.3 s for rank 1"))
              << "the cause reaches the late one";
          return;
        }
        EXPECT_EQ(fault_of([&] {
                    host_of(transport).wait_for(
                        1, [] { return false; }, "the moon");
                  }),
                  "[host] rank 0 waited 0.3 s for rank 1: the moon; try a longer timeout_s if the rank is only slow");
        waited = true;
      },
      std::chrono::milliseconds(300));
}

TEST(HostSegment, RanksThatWaitForEachOtherSaySoLongBeforeTheTimeOut) {
  const auto start = std::chrono::steady_clock::now();
  run_ranks(3, Kind::host, [](Transport& transport) {
    barrier(transport);
    const std::vector<std::string> calls = {"full_state_dict", "backward", ""};
    transport.say(calls[static_cast<size_t>(transport.rank())]);
    const std::string text =
        fault_of([&] { host_of(transport).wait_for((transport.rank() + 1) % 3, [] { return false; }, "the moon"); });
    EXPECT_TRUE(contains(text, "ranks wait for each other: ")) << text;
    EXPECT_TRUE(contains(text, "rank 0 is in full_state_dict, ")) << text;
    EXPECT_TRUE(contains(text, "rank 1 is in backward, ")) << text;
    EXPECT_TRUE(contains(text, "rank 2 is in none of sherd's calls, ")) << text;
    EXPECT_TRUE(contains(text, "which waits for the moon; try the same calls on all ranks")) << text;
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(HostSegment, ExchangesForDifferentPurposesAreNamed) {
  run_ranks(2, Kind::host, [](Transport& transport) {
    EXPECT_EQ(transport.exchange(std::vector<double>{1}, "norm").size(), 2u);
    const std::string call = transport.rank() == 0 ? "full_state_dict" : "the forward of the root";
    EXPECT_EQ(transport.say(call), "");
    const std::string text = fault_of([&] { barrier(transport, call); });
    EXPECT_TRUE(contains(text, "in an exchange that is not for the same as here: ")) << text;
    EXPECT_TRUE(contains(text, "rank 0 is in full_state_dict")) << text;
    EXPECT_TRUE(contains(text, "rank 1 is in the forward of the root")) << text;
    transport.recover();
    transport.say("");
    barrier(transport);
    EXPECT_FALSE(fault_of([&] { transport.exchange(std::vector<double>(1 + transport.rank())); }).empty());
  });
}

TEST(HostSegment, ARankThatHasFinishedIsNotWaitedForAndDisturbsNobody) {
  std::atomic<bool> undisturbed{false}, over{false};
  run_ranks(3, Kind::host, [&](Transport& transport) {
    barrier(transport);
    if (transport.rank() == 2) {
      transport.finish();
      while (!over) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    if (transport.rank() == 0) {
      const auto then = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
      host_of(transport).wait_for(
          1, [&] { return std::chrono::steady_clock::now() > then; }, "a living one");
      undisturbed = true;
    }
    while (!undisturbed) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    transport.say("full_state_dict");
    const std::string text = fault_of([&] { barrier(transport); });
    EXPECT_TRUE(contains(text, "rank 2 has finished; rank ")) << text;
    EXPECT_TRUE(contains(text, " is in full_state_dict, and waits for an exchange of it; try the same calls")) << text;
    if (transport.rank() == 0) over = true;
  });
}

TEST(HostSegment, AnAbortWakesASleeperAtOnceAndTheFirstCauseStays) {
  run_ranks(3, Kind::host, [](Transport& transport) {
    barrier(transport);
    if (transport.rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // The others are asleep by now.
      transport.abort("first");
      transport.abort("second");
      transport.abort(std::string(5000, 'x'));
      return;
    }
    const auto start = steady_clock::now();
    EXPECT_EQ(fault_of([&] { barrier(transport); }), "[host] rank 2 gave up: first");
    EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(2));
    EXPECT_EQ(fault_of([&] { barrier(transport); }), "[host] rank 2 gave up: first") << "and again";
  });
}

TEST(HostSegment, ALongCauseIsCut) {
  run_ranks(2, Kind::host, [](Transport& transport) {
    barrier(transport);
    if (transport.rank() == 1) return transport.abort(std::string(5000, 'x'));
    const std::string text = fault_of([&] { barrier(transport); });
    EXPECT_EQ(text.size(), 1019);
    EXPECT_TRUE(text.starts_with("[host] rank 1 gave up: xxx"));
  });
}

// A process that is gone: all others end within 5 s with an error that names it, though their time-out is longer.
void expect_that_the_dead_one_is_named(const std::function<std::shared_ptr<Transport>(const World&)>& make) {
  constexpr int kDead = 1;
  const auto statuses = run_processes(4, [&](const World& world) {
    const auto transport = make(world);
    barrier(*transport);
    if (world.rank == kDead) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));  // The others wait by now.
      raise(SIGKILL);
    }
    const auto start = steady_clock::now();
    const std::string text = fault_of([&] { barrier(*transport); });
    EXPECT_TRUE(contains(text, fmt::format("rank {} died", kDead))) << text;
    EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(5));
  });
  for (int rank = 0; rank < 4; ++rank) {
    const int status = statuses[static_cast<size_t>(rank)];
    if (rank != kDead) {
      EXPECT_EQ(status, 0) << "rank " << rank;
    } else {
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
  }
}

TEST(HostSegmentFaults, AKilledProcessIsNamedByAllOthers) {
  expect_that_the_dead_one_is_named([](const World& world) { return HostSegment::connect(world); });
}

TEST(C10dTransportFaults, AKilledProcessIsNamedByAllOthers) {
  expect_that_the_dead_one_is_named(
      [](const World& world) { return std::make_shared<C10dTransport>(world, gloo_backend, "gloo"); });
}

TEST(HostSegmentFaults, AStoppedProcessIsNamedAfterTheTimeOut) {
  const auto statuses = run_processes(
      3,
      [](const World& world) {
        const auto host = HostSegment::connect(world);
        barrier(*host);
        if (world.rank == 1) raise(SIGSTOP);
        const std::string text = fault_of([&] { barrier(*host); });
        EXPECT_TRUE(contains(text, "waited 0.8 s for rank 1: an exchange; rank 1 is stopped")) << text;
      },
      std::chrono::milliseconds(800));
  EXPECT_EQ(statuses[0], 0);
  EXPECT_EQ(statuses[2], 0);
}

TEST(HostSegmentFaults, WhoEndsAfterItsPartIsNoFault) {
  // Rank 0 finds `ready` false, sees that rank 1 has ended, and asks again: the exchange was complete before that end.
  const auto statuses = run_processes(2, [](const World& world) {
    const auto host = HostSegment::connect(world);
    host->exchange(std::array{1.0 * world.rank});
    if (world.rank == 1) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    // The spin and the two looks around the sleep find nothing; the look after the watch does.
    constexpr int kLooksBeforeTheWatch = 2002;
    int looks = 0;
    EXPECT_EQ(fault_of([&] {
                host->wait_for(
                    1, [&] { return ++looks > kLooksBeforeTheWatch; }, "nothing");
              }),
              "no fault");
    EXPECT_EQ(looks, kLooksBeforeTheWatch + 1);
  });
  for (const int status : statuses) EXPECT_EQ(status, 0);
}

TEST(HostSegment, NoDescriptorAndNoMappingIsLeft) {
  const auto use = [](Kind kind) {
    run_ranks(3, kind, [](Transport& transport) {
      const at::Tensor whole = at::empty({3000});
      transport.all_gather(at::zeros({1000}), whole).wait();
      if (transport.topology().one_memory()) {
        const SharedMemory memory = host_of(transport).share(10'000, 1);
        const Mapping all = memory.map_read_only(), mine = memory.map_writable(transport.rank() * 3000, 3000);
        EXPECT_FALSE(testing::mappings_of("memfd:sherd").empty());
        barrier(transport);
      }
      EXPECT_FALSE(testing::open_descriptors().empty());
    });
  };
  use(Kind::host);
  const auto before = testing::open_descriptors();
  EXPECT_TRUE(testing::mappings_of("memfd:sherd").empty());
  for (int i = 0; i < 3; ++i) use(Kind::host);
  EXPECT_TRUE(testing::mappings_of("memfd:sherd").empty());
  EXPECT_EQ(testing::open_descriptors(), before);
  // A rank that fails leaves nothing behind either.
  EXPECT_THROW(run_ranks(3, Kind::host,
                         [](Transport& transport) {
                           if (transport.rank() == 1) fault("test", "gone");
                           host_of(transport).share(1000, 1);
                         }),
               FaultError);
  EXPECT_TRUE(testing::mappings_of("memfd:sherd").empty());
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST(HostSegment, ShareGivesAllRanksTheCreatorsSegment) {
  run_ranks(4, Kind::host, [](Transport& transport) {
    for (int creator = 0; creator < 4; ++creator) {
      const SharedMemory memory = host_of(transport).share(4096 * (creator + 1) - 7, creator);
      EXPECT_EQ(memory.bytes(), 4096 * (creator + 1));
      const Mapping all = memory.map_read_only();
      if (transport.rank() == creator) memory.map_writable(0, 1).data()[0] = std::byte(creator + 1);
      barrier(transport);
      EXPECT_EQ(all.data()[0], std::byte(creator + 1));
    }
  });
}

TEST(HostSegmentFaults, AStoppedProcessIsNamedOnGlooToo) {
  const auto statuses = run_processes(
      3,
      [](const World& world) {
        C10dTransport transport(world, gloo_backend, "gloo");
        barrier(transport);
        if (world.rank == 1) raise(SIGSTOP);
        const std::string text = fault_of([&] { barrier(transport); });
        EXPECT_TRUE(contains(text, "rank 1 is stopped")) << text;
      },
      std::chrono::milliseconds(800));
  EXPECT_EQ(statuses[0], 0);
  EXPECT_EQ(statuses[2], 0);
}

TEST(HostSegmentFaults, AllHearThatTheMemoryOfOneDidNotSuffice) {
  std::atomic<int> heard{0};
  EXPECT_THROW(run_ranks(3, Kind::host,
                         [&](Transport& transport) {
                           const std::string text = fault_of([&] { host_of(transport).share(int64_t{1} << 50, 1); });
                           EXPECT_TRUE(contains(text, "cannot make a segment of ")) << text;
                           EXPECT_TRUE(contains(text, " available")) << text;
                           ++heard;
                           fault("test", "{}", text);  // which aborts the transport
                         }),
               FaultError);
  EXPECT_EQ(heard, 3);
}

// Whatever number of descriptors a process may still open: it connects, or says that they are too few. Nobody hangs.
TEST(HostSegmentFaults, TooFewFileDescriptorsAreAClearError) {
  int failed = 0;
  for (const int spare : {0, 1, 2, 3, 4, 6, 8, 40}) {
    const auto statuses = run_processes(
        3,
        [spare](const World& world) {
          rlimit before = {};
          ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
          const rlimit few = {static_cast<rlim_t>(testing::next_descriptor() + spare), before.rlim_max};
          ASSERT_EQ(setrlimit(RLIMIT_NOFILE, world.rank == 1 ? &few : &before), 0);
          try {
            const auto host = HostSegment::connect(world);
            ASSERT_NE(host, nullptr);
            host->share(1000, 1);
            barrier(*host);
          } catch (const std::exception& error) {
            setrlimit(RLIMIT_NOFILE, &before);  // the test's store opens a file to say goodbye
            const bool says_why = contains(error.what(), "Too many open files") || contains(error.what(), "ulimit -n");
            EXPECT_TRUE(world.rank != 1 || says_why) << error.what();
            throw;
          }
        },
        std::chrono::milliseconds(700));
    for (const int status : statuses)
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != testing::kRankFailed) << spare;
    if (WEXITSTATUS(statuses[1]) == testing::kRankThrew) ++failed;
    EXPECT_TRUE(spare < 40 || statuses == (std::vector<int>{0, 0, 0}));
  }
  EXPECT_GE(failed, 4) << "the limit was not felt";
}

}  // namespace
}  // namespace sherd
