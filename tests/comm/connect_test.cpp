#include "sherd/comm/connect.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using Store = c10::intrusive_ptr<c10d::Store>;

// Where rank 0 says how to reach it, in the store's corner of the first connection.
constexpr const char* kNameKey = "sherd/host/1/name";

/// A store that gives this rank a wrong address of rank 0, as if it were on another host.
class OtherHostStore : public c10d::PrefixStore {
 public:
  using PrefixStore::PrefixStore;
  std::vector<uint8_t> get(const std::string& key) override {
    const std::string_view name = "sherd-nobody-listens-here";
    if (key == kNameKey) return {name.begin(), name.end()};
    return PrefixStore::get(key);
  }
};

/// A store that lets another user connect to rank 0 before this rank does.
class StrangerStore : public c10d::PrefixStore {
 public:
  using PrefixStore::PrefixStore;
  std::vector<uint8_t> get(const std::string& key) override {
    auto bytes = PrefixStore::get(key);
    if (key == kNameKey) connect_as_nobody(bytes);
    return bytes;
  }
  int stranger() const { return stranger_; }

 private:
  void connect_as_nobody(const std::vector<uint8_t>& name) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    stranger_ = fork();
    if (stranger_ != 0) {
      int status = 0;
      waitpid(stranger_, &status, WUNTRACED);
      return;
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    const int64_t rank = 1;
    if (setresuid(65534, 65534, 65534) != 0 || connect(fd, reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
        write(fd, &rank, sizeof(rank)) < 0)
      _exit(1);
    raise(SIGSTOP);  // Connected: the true ranks may come.
    _exit(0);
  }
  pid_t stranger_ = 0;
};

/// Runs `body(world)` on threads; `store_of(rank, shared)` gives each its store.
void run_worlds(int n, const std::function<Store(int, const Store&)>& store_of,
                const std::function<void(const World&)>& body) {
  const Store shared = c10::make_intrusive<c10d::HashStore>();
  shared->setTimeout(std::chrono::seconds(20));
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < n; ++rank)
    threads.emplace_back([&, rank] {
      body({.rank = rank, .size = n, .store = store_of(rank, shared), .timeout = std::chrono::seconds(20)});
    });
}

Store plain(int, const Store& shared) { return c10::make_intrusive<c10d::PrefixStore>("p", shared); }
Store third_elsewhere(int rank, const Store& shared) {
  return rank == 2 ? Store(c10::make_intrusive<OtherHostStore>("p", shared)) : plain(rank, shared);
}

TEST(Connect, OneRankIsSoloWhateverIsAsked) {
  for (const char* kind : {"auto", "host", "gloo"}) EXPECT_EQ(connect(World{}, kind)->name(), "solo");
}

TEST(Connect, AnUnknownKindIsAnError) {
  for (const char* kind : {"", "nccl", "Host", "auto "}) {
    try {
      connect(World{}, kind);
      FAIL() << kind;
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.what(), fmt::format("[transport] got '{}', expected auto, host or gloo; try auto", kind));
    }
    EXPECT_THROW(validate_transport(kind), ConfigError);
  }
}

TEST(Connect, AutoAndHostTakeTheHostSegmentAndGlooTakesGloo) {
  for (const auto& [kind, name] :
       std::map<std::string, std::string>{{"auto", "host"}, {"host", "host"}, {"gloo", "gloo"}})
    run_worlds(3, plain, [&](const World& world) {
      const auto transport = connect(world, kind);
      EXPECT_EQ(transport->name(), name);
      EXPECT_EQ(transport->topology().one_memory(), name == "host");
      EXPECT_EQ(transport->exchange(std::array{world.rank + 0.5}), (std::vector{0.5, 1.5, 2.5}));
    });
}

TEST(Connect, WhereOneRankIsElsewhereNoRankGetsAHostSegment) {
  run_worlds(3, third_elsewhere, [](const World& world) { EXPECT_EQ(HostSegment::connect(world), nullptr); });
}

TEST(Connect, WhereOneRankIsElsewhereAutoTakesGloo) {
  run_worlds(3, third_elsewhere, [](const World& world) {
    const auto transport = connect(world, "auto");
    EXPECT_EQ(transport->name(), "gloo");
    EXPECT_EQ(transport->exchange(std::array{world.rank + 0.5}), (std::vector{0.5, 1.5, 2.5}));
  });
}

TEST(Connect, WhereOneRankIsElsewhereHostIsAnError) {
  run_worlds(3, third_elsewhere, [](const World& world) {
    try {
      connect(world, "host");
      ADD_FAILURE() << "rank " << world.rank << " connected";
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "[transport] got 'host', but the ranks are not on one host; try 'auto' or 'gloo'");
    }
  });
}

TEST(Connect, RanksThatDeclareOtherHostsGetNoHostSegment) {
  run_worlds(3, plain, [](World world) {
    world.host = world.rank == 2 ? "elsewhere" : "here";
    EXPECT_EQ(HostSegment::connect(world), nullptr);
    const auto transport = connect(world, "auto");
    EXPECT_EQ(transport->name(), "gloo");
    EXPECT_EQ(transport->topology().hosts(), 2);
    EXPECT_EQ(transport->topology().ranks_of(0), (std::vector{0, 1}));
    EXPECT_FALSE(transport->topology().one_memory());
  });
}

/// Counts what all ranks read.
class CountingStore : public c10d::PrefixStore {
 public:
  CountingStore(const std::string& prefix, const c10::intrusive_ptr<c10d::Store>& inner, std::atomic<int>& reads)
      : PrefixStore(prefix, inner), reads_(reads) {}
  std::vector<uint8_t> get(const std::string& key) override {
    ++reads_;
    return PrefixStore::get(key);
  }

 private:
  std::atomic<int>& reads_;
};

TEST(Connect, CostsReadsOfTheStoreAsManyAsRanks) {
  for (const int ranks : {2, 6, 12}) {
    std::atomic<int> reads{0};
    const auto counting = [&](int, const Store& shared) -> Store {
      return c10::make_intrusive<CountingStore>("p", shared, reads);
    };
    run_worlds(ranks, counting, [](const World& world) { EXPECT_NE(HostSegment::connect(world), nullptr); });
    EXPECT_LE(reads, 3 * ranks) << "memory";
    reads = 0;
    run_worlds(ranks, counting, [&](const World& world) {
      const C10dFamily family(world, "family");
      EXPECT_EQ(family.topology().hosts(), 1);
    });
    EXPECT_LE(reads, 2 * ranks) << "a family";
  }
}

TEST(Rendezvous, GatheredTextsMayHoldAnything) {
  run_worlds(4, plain, [](const World& world) {
    const auto text = [](int rank) {
      return std::vector<std::string>{"", "7 x", "a\nb", std::string(3, '\0')}[static_cast<size_t>(rank)];
    };
    const auto all = gather_texts(world, "texts", text(world.rank));
    ASSERT_EQ(all.size(), 4u);
    for (int r = 0; r < 4; ++r) EXPECT_EQ(all[static_cast<size_t>(r)], text(r));
  });
}

TEST(Connect, AnotherUserGetsNoSegment) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  std::atomic<pid_t> stranger{0};
  run_worlds(
      2,
      [](int rank, const Store& shared) {
        return rank == 1 ? Store(c10::make_intrusive<StrangerStore>("p", shared)) : plain(rank, shared);
      },
      [&](const World& world) {
        const auto host = HostSegment::connect(world);
        ASSERT_NE(host, nullptr);
        if (const auto* store = dynamic_cast<const StrangerStore*>(world.store.get())) stranger = store->stranger();
        EXPECT_EQ(host->exchange(std::array{world.rank + 0.5}), (std::vector{0.5, 1.5}));
      });
  ASSERT_GT(stranger, 0);
  kill(stranger, SIGCONT);
  int status = -1;
  waitpid(stranger, &status, 0);
  EXPECT_EQ(status, 0) << "the stranger did not connect, so nothing was tried";
}

}  // namespace
}  // namespace sherd
