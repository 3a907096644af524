// The protocol of epochs and mailboxes under random delays: every value that arrives is checked.
#include <gtest/gtest.h>

#include <random>

#include "sherd/comm/group_epochs.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using testing::Kind;
using testing::run_ranks;

class Delay {
 public:
  explicit Delay(int rank) : random_(static_cast<uint32_t>(rank) + 17) {}
  /// Mostly nothing, at times a yield or a spin, seldom a sleep that makes the peers sleep too.
  void operator()() {
    const uint32_t kind = random_() % 64;
    if (kind == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 300));
    if (kind < 8) std::this_thread::yield();
    if (kind < 24)
      for (volatile uint32_t i = random_() % 2000; i > 0;) i = i - 1;
  }

 private:
  std::mt19937 random_;
};

class EpochsTest : public ::testing::TestWithParam<std::tuple<Kind, int>> {};

TEST_P(EpochsTest, NoExchangeMixesWithItsNeighbours) {
  const auto [kind, ranks] = GetParam();
  const int rounds = kind == Kind::gloo || kind == Kind::hosts ? 200 : 2000;
  run_ranks(ranks, kind, [rounds](Transport& transport) {
    Delay delay(transport.rank());
    for (int round = 0; round < rounds; ++round) {
      const size_t count = static_cast<size_t>(round) % 5;  // also 0: a barrier between two others
      std::vector<double> mine(count);
      for (size_t i = 0; i < count; ++i) mine[i] = round * 100.0 + transport.rank() * 10.0 + static_cast<double>(i);
      delay();
      const auto all = transport.exchange(mine);
      delay();
      ASSERT_EQ(all.size(), count * static_cast<size_t>(transport.size()));
      for (size_t i = 0; i < all.size(); ++i)
        ASSERT_EQ(all[i], round * 100.0 + static_cast<double>(i / count) * 10.0 + static_cast<double>(i % count));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Kinds, EpochsTest,
                         ::testing::Combine(::testing::ValuesIn(testing::kAllKinds), ::testing::Range(2, 5)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(std::get<0>(info.param)),
                                              std::get<1>(info.param));
                         });

// The reduction of [Note: Epochs] with one slot a rank: contributed, then everybody sums, then reduced, then reuse.
TEST(GroupEpochsTest, ASlotIsReusedOnlyAfterAllHaveReducedIt) {
  constexpr int64_t kElements = 500;
  constexpr uint64_t kRounds = 1000;
  for (const int ranks : {2, 3, 4}) {
    run_ranks(ranks, Kind::host, [ranks](Transport& transport) {
      HostSegment& host = transport.host_memory();
      const auto n = static_cast<size_t>(ranks);
      const SharedMemory lines_memory = host.share(ranks * static_cast<int64_t>(sizeof(GroupEpochs)), ranks - 1);
      const Mapping lines_mapping = lines_memory.map_writable(0, lines_memory.bytes());
      const std::span<GroupEpochs> lines(reinterpret_cast<GroupEpochs*>(lines_mapping.data()), n);
      const SharedMemory slots_memory = host.share(ranks * kElements * static_cast<int64_t>(sizeof(double)), 0);
      const Mapping slots = slots_memory.map_read_only();
      const Mapping slot = slots_memory.map_writable(transport.rank() * kElements * 8, kElements * 8);
      GroupEpochs& mine = lines[static_cast<size_t>(transport.rank())];
      const auto wait_for_all = [&](std::atomic<uint64_t> GroupEpochs::*counter, uint64_t value) {
        for (int r = 0; r < ranks; ++r)
          host.wait_for(
              r, [&] { return (lines[static_cast<size_t>(r)].*counter).load(std::memory_order_acquire) >= value; },
              "a round");
      };
      Delay delay(transport.rank());
      for (uint64_t round = 1; round <= kRounds; ++round) {
        wait_for_all(&GroupEpochs::reduced, round - 1);
        auto* out = reinterpret_cast<double*>(slot.data());
        for (int64_t i = 0; i < kElements; ++i) out[i] = static_cast<double>(round) * (transport.rank() + 1);
        delay();
        mine.contributed.store(round, std::memory_order_release);
        host.notify();
        wait_for_all(&GroupEpochs::contributed, round);
        delay();
        const auto* in = reinterpret_cast<const double*>(slots.data());
        for (int64_t i = 0; i < kElements; ++i) {
          double sum = 0;
          for (int r = 0; r < ranks; ++r) sum += in[r * kElements + i];
          ASSERT_EQ(sum, static_cast<double>(round) * ranks * (ranks + 1) / 2) << "round " << round;
        }
        mine.reduced.store(round, std::memory_order_release);
        host.notify();
      }
      barrier(transport);
    });
  }
}

}  // namespace
}  // namespace sherd
