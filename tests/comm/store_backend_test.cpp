// Control over the store: gathers of bytes by themselves, and a transport whose backend knows no tensors of the CPU.
#include "sherd/comm/store_backend.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "tests/support/device_backend.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using std::chrono::milliseconds;
using testing::DeviceBackend;
using testing::PretendedDevice;

std::string caught(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing";
}

at::Tensor bytes(int64_t count, int value) { return at::full({count}, value, at::kByte); }

using Store = c10::intrusive_ptr<c10d::Store>;

Store tcp_store(uint16_t port, bool serves) {
  c10d::TCPStoreOptions options;
  options.isServer = serves;
  options.port = port;
  options.timeout = std::chrono::seconds(10);
  return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}

/// What ranks meet in: one store for all threads, or a client of a server for each.
std::vector<std::function<Store()>> stores(const Store& hash, const c10d::TCPStore& server, const std::string& file) {
  return {[&] { return hash; }, [&] { return tcp_store(server.getPort(), false); },
          [=] { return c10::make_intrusive<c10d::FileStore>(file, 3); }};
}

/// body(store of a rank, rank) on three threads, for each kind of store.
void on_three_ranks(const std::function<void(const Store&, int)>& body) {
  const auto hash = c10::make_intrusive<c10d::HashStore>();
  const Store server = tcp_store(0, true);
  const std::string file = std::string(::testing::TempDir()) + "store_backend." + std::to_string(getpid());
  for (const auto& store_of_a_rank : stores(hash, static_cast<const c10d::TCPStore&>(*server), file)) {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 3; ++rank) threads.emplace_back([&, rank] { body(store_of_a_rank(), rank); });
  }
}

TEST(StoreBackend, GathersTwoAtATimeAndLeavesNothingBehind) {
  constexpr int kRanks = 3, kRounds = 20;
  on_three_ranks([](const Store& store, int rank) {
    StoreBackend backend({.rank = rank, .size = kRanks, .store = store});
    const int64_t before = store->getNumKeys();
    for (int round = 0; round < kRounds; ++round) {
      at::Tensor first = bytes(5, round + rank), second = bytes(300, 100 + rank);
      at::Tensor all_first = bytes(5 * kRanks, 0), all_second = bytes(300 * kRanks, 0);
      const auto one = backend._allgather_base(all_first, first), two = backend._allgather_base(all_second, second);
      one->wait(std::chrono::seconds(10));
      two->wait(std::chrono::seconds(10));
      EXPECT_TRUE(one->isCompleted() && two->isSuccess());
      for (int r = 0; r < kRanks; ++r) {
        ASSERT_TRUE(at::equal(all_first.narrow(0, 5 * r, 5), bytes(5, round + r)));
        ASSERT_TRUE(at::equal(all_second.narrow(0, 300 * r, 300), bytes(300, 100 + r)));
      }
    }
    EXPECT_LE(store->getNumKeys(), before + 4 * kRanks) << "those of the last gathers";
  });
}

TEST(StoreBackend, AWaitEndsWithItsTimeOutAndWithAnAbort) {
  on_three_ranks([](const Store& store, int rank) {
    if (rank != 0) return;
    StoreBackend backend({.rank = 0, .size = 2, .store = store, .timeout = milliseconds(50)});
    at::Tensor mine = bytes(1, 1), all = bytes(2, 0);
    const auto work = backend._allgather_base(all, mine);
    for (int again = 0; again < 3; ++again) {
      EXPECT_NE(caught([&] { work->wait(milliseconds(20)); }), "nothing");
      EXPECT_FALSE(work->isCompleted()) << "a peer may still come";
    }
    backend.abort();
    EXPECT_EQ(caught([&] { work->wait(milliseconds(20)); }), "[store] a gather was broken off");
    EXPECT_TRUE(work->isCompleted());
    EXPECT_FALSE(work->isSuccess());
  });
}

class DeviceTransport : public ::testing::TestWithParam<int> {
 protected:
  using RankBody = std::function<void(C10dTransport&, PretendedDevice&)>;

  void run(const RankBody& body, milliseconds timeout = std::chrono::seconds(20)) {
    const auto store = c10::make_intrusive<c10d::HashStore>();
    store->setTimeout(timeout);
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < GetParam(); ++rank)
      threads.emplace_back([&, rank] {
        at::set_num_threads(1);
        PretendedDevice device;
        const World world{.rank = rank, .size = GetParam(), .store = store, .timeout = timeout};
        const auto backend = [&](const World& all) {
          return c10::make_intrusive<DeviceBackend>(gloo_backend(all), device);
        };
        C10dTransport transport(world, backend, "device", Moves::device_tensors);
        EXPECT_EQ(caught([&] { body(transport, device); }), "nothing") << "rank " << rank;
      });
  }

  static void expect_that_data_moves(Transport& transport, PretendedDevice& device) {
    const int n = transport.size(), me = transport.rank();
    const at::Tensor shard = device.empty(10), whole = device.empty(10 * n), received = device.empty(10 * n);
    shard.fill_(me);
    transport.all_gather(shard, whole).wait();
    transport.all_to_all(whole, received).wait();
    for (int r = 0; r < n; ++r) {
      ASSERT_TRUE(at::equal(whole.narrow(0, 10 * r, 10), at::full({10}, static_cast<float>(r))));
      ASSERT_TRUE(at::equal(received.narrow(0, 10 * r, 10), at::full({10}, static_cast<float>(me))));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, DeviceTransport, ::testing::Values(2, 3));

TEST_P(DeviceTransport, ControlNeedsNoTensorOfTheCpu) {
  run([](C10dTransport& transport, PretendedDevice& device) {
    for (int round = 0; round < 10; ++round) {
      const auto all = transport.exchange(std::array{10.0 * round, 1.0 * transport.rank()}, "a round");
      for (int r = 0; r < transport.size(); ++r) EXPECT_EQ(all[2 * static_cast<size_t>(r) + 1], r);
      barrier(transport);
      expect_that_data_moves(transport, device);
    }
    // Data of the CPU is refused by the backend, and control goes on after it.
    const at::Tensor there = at::empty({transport.size()});
    const std::string text = caught([&] { transport.all_gather(at::empty({1}), there, "nothing").wait(); });
    EXPECT_NE(text.find("no backend for tensors of the cpu"), std::string::npos) << text;
    transport.recover();
    expect_that_data_moves(transport, device);
  });
}

TEST_P(DeviceTransport, AnAbortEndsAWaitAndAllRecover) {
  run([](C10dTransport& transport, PretendedDevice& device) {
    std::vector<int> everybody(static_cast<size_t>(transport.size()));
    std::iota(everybody.begin(), everybody.end(), 0);
    const auto group = transport.subgroup(everybody);
    for (int round = 0; round < 3; ++round) {
      if (transport.rank() == 1) {
        transport.abort("it gives up");
      } else {
        const std::string text = caught([&] { barrier(round % 2 == 0 ? transport : *group); });
        EXPECT_NE(text.find("[device] rank 1 gave up: it gives up"), std::string::npos) << text;
      }
      transport.recover();
      barrier(*group);
      expect_that_data_moves(*group, device);
      expect_that_data_moves(transport, device);
    }
  });
}

TEST_P(DeviceTransport, DifferentExchangesAreNamed) {
  run([](C10dTransport& transport, PretendedDevice&) {
    const bool last = transport.rank() == transport.size() - 1;
    const std::string text = caught([&] { transport.exchange(std::vector<double>(last ? 2 : 1)); });
    EXPECT_NE(text.find("exchange (1 elements)"), std::string::npos) << text;
    EXPECT_NE(text.find("exchange (2 elements)"), std::string::npos) << text;
    transport.recover();
    barrier(transport);  // nobody ends while others still connect
  });
}

TEST_P(DeviceTransport, APeerThatDoesNotComeEndsInATimeOut) {
  std::atomic<int> waited{0};
  run(
      [&](C10dTransport& transport, PretendedDevice&) {
        barrier(transport);
        if (transport.rank() == 0) {
          while (waited < transport.size() - 1) std::this_thread::sleep_for(milliseconds(5));
          return;
        }
        const std::string text = caught([&] { barrier(transport); });
        EXPECT_NE(text.find("an exchange failed on rank"), std::string::npos) << text;
        ++waited;
      },
      milliseconds(500));
}

TEST(DeviceTransportFaults, ADeadRankIsNamed) {
  const auto statuses = testing::run_processes(3, [](const World& world) {
    PretendedDevice device;
    C10dTransport transport(
        world, [&](const World& all) { return c10::make_intrusive<DeviceBackend>(gloo_backend(all), device); },
        "device", Moves::device_tensors);
    barrier(transport);
    if (world.rank == 1) raise(SIGKILL);
    const auto start = std::chrono::steady_clock::now();
    const std::string text = caught([&] { barrier(transport); });
    EXPECT_NE(text.find("rank 1 died"), std::string::npos) << text;
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  });
  EXPECT_EQ(statuses[0], 0);
  EXPECT_EQ(statuses[2], 0);
}

}  // namespace
}  // namespace sherd
