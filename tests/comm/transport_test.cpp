// The collectives on every transport: what arrives is compared with what each rank says it sent.
#include "sherd/comm/transport.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using testing::Kind;
using testing::run_ranks;

constexpr auto kShort = std::chrono::milliseconds(500);

class TransportTest : public ::testing::TestWithParam<std::tuple<Kind, int>> {
 protected:
  void run(const testing::Body& body) { run_ranks(std::get<1>(GetParam()), std::get<0>(GetParam()), body); }
};

/// What rank r sends at place i in round k: distinct, and exact in fp32.
double value(int rank, int64_t i, int k = 0) {
  return rank * 1'000'000.0 + static_cast<double>(i % 65536) + k * 100'000.0;
}

at::Tensor sent(int rank, int64_t elements, int k = 0) {
  at::Tensor result = at::empty({elements});
  for (int64_t i = 0; i < elements; ++i) result.data_ptr<float>()[i] = static_cast<float>(value(rank, i, k));
  return result;
}

const std::vector<int64_t> kSizes = {1, 2, 3, 255, 1024, 4097, 300'001};

TEST_P(TransportTest, ExchangeReturnsAllValuesInRankOrder) {
  run([](Transport& transport) {
    for (const size_t count : {1UL, 2UL, 1023UL, 1024UL, 1025UL, 5000UL}) {
      std::vector<double> mine(count);
      for (size_t i = 0; i < count; ++i) mine[i] = value(transport.rank(), static_cast<int64_t>(i)) + 0x1p-40;
      const auto all = transport.exchange(mine);
      ASSERT_EQ(all.size(), count * static_cast<size_t>(transport.size()));
      for (size_t i = 0; i < all.size(); ++i)
        ASSERT_EQ(all[i], value(static_cast<int>(i / count), static_cast<int64_t>(i % count)) + 0x1p-40);
    }
  });
}

TEST_P(TransportTest, AnEmptyExchangeIsABarrier) {
  std::atomic<int> arrived{0};
  run([&](Transport& transport) {
    for (int round = 1; round <= 20; ++round) {
      std::this_thread::sleep_for(std::chrono::microseconds(200 * ((transport.rank() + round) % transport.size())));
      ++arrived;
      EXPECT_TRUE(transport.exchange({}).empty());
      ASSERT_GE(arrived.load(), round * transport.size())
          << "rank " << transport.rank() << " passed before all had come";
      barrier(transport);
    }
  });
}

TEST_P(TransportTest, AllGatherPutsShardsInRankOrder) {
  run([](Transport& transport) {
    for (const int64_t n : kSizes) {
      const at::Tensor whole = at::full({n * transport.size()}, -1.0);
      transport.all_gather(sent(transport.rank(), n), whole).wait();
      for (int r = 0; r < transport.size(); ++r) ASSERT_TRUE(at::equal(whole.narrow(0, r * n, n), sent(r, n))) << n;
    }
  });
}

TEST_P(TransportTest, AllToAllGivesEachRankItsPieceOfEveryRank) {
  run([](Transport& transport) {
    for (const int64_t n : kSizes) {
      const at::Tensor send = sent(transport.rank(), n * transport.size());
      const at::Tensor received = at::full({n * transport.size()}, -1.0);
      transport.all_to_all(send, received).wait();
      for (int r = 0; r < transport.size(); ++r)
        ASSERT_TRUE(
            at::equal(received.narrow(0, r * n, n), sent(r, n * transport.size()).narrow(0, transport.rank() * n, n)))
            << n;
      ASSERT_TRUE(at::equal(send, sent(transport.rank(), n * transport.size()))) << "what is sent stays";
    }
  });
}

TEST_P(TransportTest, NothingMayBeSent) {
  run([](Transport& transport) {
    const at::Tensor none = at::empty({0}), also_none = at::empty({0});
    transport.all_gather(none, also_none).wait();
    transport.all_to_all(none, also_none).wait();
    EXPECT_EQ(transport.exchange(std::array{1.0}).size(), static_cast<size_t>(transport.size()))
        << "and then it goes on";
  });
}

TEST_P(TransportTest, SeveralCollectivesMayBeUnderWay) {
  run([](Transport& transport) {
    constexpr int kRounds = 5;
    constexpr int64_t kElements = 1001;
    std::vector<at::Tensor> shards, wholes, received;
    std::vector<Pending> pending;
    for (int k = 0; k < kRounds; ++k) {
      shards.push_back(sent(transport.rank(), kElements * transport.size(), k));
      wholes.push_back(at::full({kElements * transport.size()}, -1.0));
      received.push_back(at::full({kElements * transport.size()}, -1.0));
      pending.push_back(transport.all_gather(shards.back().narrow(0, 0, kElements), wholes.back()));
      pending.push_back(transport.all_to_all(shards.back(), received.back()));
    }
    // The last one started is waited for first; an exchange may come between.
    EXPECT_EQ(transport.exchange(std::array{7.0}).front(), 7.0);
    while (!pending.empty()) {
      pending.back().wait();
      pending.pop_back();
    }
    for (int k = 0; k < kRounds; ++k)
      for (int r = 0; r < transport.size(); ++r) {
        const at::Tensor theirs = sent(r, kElements * transport.size(), k);
        const auto at_k = static_cast<size_t>(k);
        ASSERT_TRUE(at::equal(wholes[at_k].narrow(0, r * kElements, kElements), theirs.narrow(0, 0, kElements)));
        ASSERT_TRUE(at::equal(received[at_k].narrow(0, r * kElements, kElements),
                              theirs.narrow(0, transport.rank() * kElements, kElements)));
      }
  });
}

TEST_P(TransportTest, APendingThatIsDroppedWaits) {
  run([](Transport& transport) {
    const at::Tensor whole = at::full({10 * transport.size()}, -1.0);
    { const Pending dropped = transport.all_gather(sent(transport.rank(), 10), whole); }
    for (int r = 0; r < transport.size(); ++r) EXPECT_TRUE(at::equal(whole.narrow(0, 10 * r, 10), sent(r, 10)));
  });
}

TEST_P(TransportTest, AnAbortReachesAWaitingPeerWithItsCause) {
  const int ranks = std::get<1>(GetParam());
  if (ranks == 1) GTEST_SKIP() << "nobody to tell";
  std::atomic<int> told{0};
  EXPECT_THROW(run([&](Transport& transport) {
                 if (transport.rank() == ranks - 1) config_error("test", "the disk is on fire");
                 try {
                   barrier(transport);
                 } catch (const FaultError& error) {
                   const std::string text = error.what();
                   EXPECT_NE(text.find(fmt::format("rank {} gave up", ranks - 1)), std::string::npos) << text;
                   EXPECT_NE(text.find("the disk is on fire"), std::string::npos) << text;
                   ++told;
                 }
               }),
               ConfigError);
  EXPECT_EQ(told, ranks - 1);
}

TEST_P(TransportTest, APeerThatDoesNotComeIsNamedAfterTheTimeOut) {
  const auto [kind, ranks] = GetParam();
  if (ranks == 1) GTEST_SKIP() << "nobody to wait for";
  std::atomic<int> waited{0};
  run_ranks(
      ranks, kind,
      [&](std::shared_ptr<Transport> transport) {
        barrier(*transport);
        if (transport->rank() == 0) {
          while (waited < transport->size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
          return;
        }
        try {
          barrier(*transport);
          ADD_FAILURE() << "rank 0 did not come";
        } catch (const FaultError& error) {
          const std::string text = error.what();
          const std::string_view expected =
              kind == Kind::gloo || kind == Kind::hosts ? "an exchange failed on rank" : "rank 0: an exchange";
          EXPECT_NE(text.find(expected), std::string::npos) << text;
        }
        ++waited;
      },
      kShort);
  EXPECT_EQ(waited, ranks - 1);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TransportTest,
                         ::testing::Combine(::testing::ValuesIn(testing::kAllKinds), ::testing::Range(1, 5)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(std::get<0>(info.param)),
                                              std::get<1>(info.param));
                         });

TEST(PendingTest, WaitsOnceWherePutLast) {
  int waits = 0;
  Pending first([&] { ++waits; });
  Pending second(std::move(first));
  second.wait();
  second.wait();
  EXPECT_EQ(waits, 1);
  {
    Pending third([&] { ++waits; });
  }
  EXPECT_EQ(waits, 2);
}

TEST(PendingTest, AnErrorBelongsToWhoWaits) {
  EXPECT_THROW(Pending([] { fault("test", "lost"); }).wait(), FaultError);
  EXPECT_NO_THROW({ const Pending dropped([] { fault("test", "lost"); }); });
}

}  // namespace
}  // namespace sherd
