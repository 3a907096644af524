// Ranks of this machine that are declared to be on several hosts: data through the memory of each host and between
// them, and one family over both.
#include "sherd/comm/hosts_transport.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <barrier>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using testing::Kind;

/// What lies between the hosts, and by rank which host it is on.
struct Hosts {
  Kind between;
  std::string names;
  int ranks() const { return static_cast<int>(names.size()); }
};
void PrintTo(const Hosts& hosts, std::ostream* out) { *out << name_of(hosts.between) << " " << hosts.names; }

bool holds(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::string text_of_fault(const std::function<void()>& body) {
  try {
    body();
  } catch (const FaultError& error) {
    return error.what();
  }
  return "no fault";
}

/// Both levels of one rank. Contributions of a host's ranks are summed in its memory, hosts' sums travel between the
/// ranks of one place, and what comes of it is read from the host's memory.
class Levels {
 public:
  explicit Levels(const std::shared_ptr<Transport>& all)
      : inside(all->subgroup(all->topology().ranks_of(all->topology().host_of(all->rank())))),
        across(all->subgroup(all->topology().across(all->rank()))) {
    if (!inside->topology().one_memory()) return;
    memory_ = inside->host_memory().share(kBytes * inside->size(), inside->size() - 1);
    view_ = memory_.map_read_only();
    mine_ = memory_.map_writable(kBytes * inside->rank(), kBytes);
  }

  /// The sum over all ranks of what each brings.
  double sum_of_all(double value) {
    const double here = sum(read_all(value));
    std::vector<double> hosts(static_cast<size_t>(across->size()));
    const at::Tensor sums = at::empty({across->size()}, at::kDouble);
    across->all_gather(at::full({1}, here, at::kDouble), sums).wait();
    return sums.sum().item<double>();
  }

  std::shared_ptr<Transport> inside, across;

 private:
  static constexpr int64_t kBytes = 4096;

  std::vector<double> read_all(double value) {
    if (!inside->topology().one_memory()) return {value};
    barrier(*inside);  // all have read what was there
    *reinterpret_cast<double*>(mine_.data()) = value;
    barrier(*inside);
    std::vector<double> all;
    for (int r = 0; r < inside->size(); ++r) all.push_back(*reinterpret_cast<double*>(view_.data() + r * kBytes));
    return all;
  }
  static double sum(const std::vector<double>& values) {
    double total = 0;
    for (const double value : values) total += value;
    return total;
  }

  SharedMemory memory_;
  Mapping view_, mine_;
};

class HostsTest : public ::testing::TestWithParam<Hosts> {
 protected:
  void run(const testing::SharedBody& body, std::chrono::milliseconds timeout = std::chrono::seconds(30)) {
    const Hosts& hosts = GetParam();
    const auto store = c10::make_intrusive<c10d::HashStore>();
    store->setTimeout(timeout);
    ThreadGroup group(hosts.ranks(), timeout);
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < hosts.ranks(); ++rank)
      threads.emplace_back([&, rank] {
        at::set_num_threads(1);
        const World world{.rank = rank,
                          .size = hosts.ranks(),
                          .store = store,
                          .timeout = timeout,
                          .host = std::string(1, hosts.names[static_cast<size_t>(rank)])};
        try {
          body(HostsTransport::join(world, testing::make_transport(world, hosts.between, group)));
        } catch (const std::exception& error) {
          ADD_FAILURE() << "rank " << rank << ": " << error.what();
          std::abort();
        }
      });
  }
  int host_of(int rank) const { return GetParam().names[static_cast<size_t>(rank)]; }
};
INSTANTIATE_TEST_SUITE_P(Layouts, HostsTest,
                         ::testing::Values(Hosts{Kind::gloo, "aabb"}, Hosts{Kind::threads, "aabb"},
                                           Hosts{Kind::threads, "abab"}, Hosts{Kind::gloo, "aab"},
                                           Hosts{Kind::threads, "abbca"}, Hosts{Kind::gloo, "aaa"}),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(info.param.between), info.param.names);
                         });

TEST_P(HostsTest, TheTopologyIsTheDeclaredOne) {
  run([&](const std::shared_ptr<Transport>& all) {
    const Topology& topology = all->topology();
    EXPECT_EQ(all->size(), GetParam().ranks());
    for (int r = 0; r < all->size(); ++r)
      EXPECT_EQ(topology.host_of(r) == topology.host_of(all->rank()), host_of(r) == host_of(all->rank()));
    const Levels levels(all);
    EXPECT_EQ(levels.inside->topology().one_memory(), levels.inside->size() > 1);
    EXPECT_EQ(levels.across->topology().hosts(), levels.across->size());
    EXPECT_FALSE(levels.across->topology().one_memory());
  });
}

TEST_P(HostsTest, DataMovesThroughBothLevels) {
  run([&](const std::shared_ptr<Transport>& all) {
    Levels levels(all);
    const bool even = levels.across->size() == all->topology().hosts();
    for (int round = 0; round < 20; ++round) {
      const double mine = 100.0 * round + all->rank();
      double expected = 0;
      for (int r = 0; r < all->size(); ++r) expected += 100.0 * round + r;
      const double got = levels.sum_of_all(mine);
      if (even) {
        ASSERT_EQ(got, expected);
      }
      const std::vector<double> all_got = all->exchange(std::array{mine});
      for (int r = 0; r < all->size(); ++r) ASSERT_EQ(all_got[static_cast<size_t>(r)], 100.0 * round + r);
    }
  });
}

// In turn each rank gives up on one of the levels, while the others wait in each of them: all hear the same cause, with
// the rank's number among all, and both levels work again.
TEST_P(HostsTest, AnAbortIsHeardOnBothLevelsAndAnyMemberRecoversBoth) {
  std::barrier all_have_checked(GetParam().ranks());
  run([&](const std::shared_ptr<Transport>& all) {
    Levels levels(all);
    const std::vector<Transport*> members = {all.get(), levels.inside.get(), levels.across.get()};
    // A rank alone is no member: what it would do there is done on the whole.
    const auto member = [&](int i) {
      Transport* wanted = members[static_cast<size_t>(i) % members.size()];
      return wanted->size() > 1 ? wanted : all.get();
    };
    for (int cycle = 0; cycle < 2 * all->size(); ++cycle) {
      const int aborter = cycle % all->size(), me = all->rank();
      std::string heard;
      if (me == aborter) {
        if (cycle % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));  // all others wait by now
        member(cycle)->abort(fmt::format("cycle {}", cycle));
      } else {
        // Where this rank waits, somebody must be missing.
        heard = text_of_fault([&] {
          while (true) barrier(*member(me + cycle + 1));
        });
        EXPECT_TRUE(holds(heard, fmt::format("rank {} gave up: cycle {}", aborter, cycle))) << heard;
      }
      member(me + 2 * cycle)->recover();
      EXPECT_EQ(all->recoveries(), static_cast<uint64_t>(cycle + 1));
      const double got = levels.sum_of_all(1);
      EXPECT_GE(got, levels.inside->size());
      barrier(*all);
      all_have_checked.arrive_and_wait();
    }
  });
}

TEST_P(HostsTest, SubgroupsOutliveTheVariableThatHeldTheWhole) {
  run([&](std::shared_ptr<Transport> all) {
    Levels levels(all);
    barrier(*all);
    all.reset();
    EXPECT_GE(levels.sum_of_all(1), 1);
    const std::string call = "a call of many levels";
    levels.inside->say(call);
    EXPECT_EQ(levels.inside->say(""), call);
  });
}

TEST_P(HostsTest, ATimeOutNamesRanksByTheirNumbersAmongAll) {
  const Hosts& hosts = GetParam();
  const int last = hosts.ranks() - 1;
  std::atomic<int> over{0};
  run(
      [&](const std::shared_ptr<Transport>& all) {
        const Levels levels(all);
        barrier(*all);
        const std::vector<int>& beside = all->topology().ranks_of(all->topology().host_of(last));
        const int waits = beside.front();
        if (waits != last && all->rank() == waits) {
          const std::string text = text_of_fault([&] { barrier(*levels.inside); });
          EXPECT_TRUE(holds(text, fmt::format("rank {} waited 0.4 s for rank {}: an exchange", waits, beside[1])))
              << text;
        }
        ++over;
        while (over < hosts.ranks()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      },
      std::chrono::milliseconds(400));
}

TEST(HostsFaults, ADeadRankIsNamedOnBothLevels) {
  const auto statuses = testing::run_processes(4, [](const World& world) {
    ThreadGroup none(1);
    const auto all = testing::make_transport(world, Kind::hosts, none);
    const Levels levels(all);
    barrier(*all);
    if (world.rank == 3) raise(SIGKILL);
    // Rank 2 waits for it in memory, rank 1 between hosts, and rank 0 for rank 1 in memory.
    Transport& where = world.rank == 1 ? *levels.across : *levels.inside;
    const std::string text = text_of_fault([&] { barrier(where); });
    EXPECT_TRUE(holds(text, "rank 3 died")) << text;
    EXPECT_NE(text_of_fault([&] { all->recover(); }), "no fault");
  });
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(statuses[static_cast<size_t>(rank)], 0) << rank;
}

}  // namespace
}  // namespace sherd
