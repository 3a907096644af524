// One host, one copy: what an owner writes is in its peers' parameters, and nothing was sent.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include "tests/support/process_maps.h"
#include "tests/support/ranks.h"
#include "tests/support/socket_trap.h"

namespace sherd {
namespace {

using testing::mapping_at;
using testing::run_processes;
using testing::SocketTrap;

constexpr int64_t kRowBytes = 3000;  // not a whole page: neighbours share the pages at their borders

/// The rows of rank r: a counter that says how often they were written, then values.
struct Rows {
  std::atomic<uint64_t> written;
  std::array<uint64_t, kRowBytes / 8 - 1> values;
};
static_assert(sizeof(Rows) == kRowBytes);

TEST(ZeroCopyTest, AnOwnersWriteIsInEveryRanksParametersAndNoByteMoved) {
  constexpr int kRanks = 3;
  constexpr uint64_t kRounds = 200;
  const auto statuses = run_processes(kRanks, [](const World& world) {
    const auto host = HostSegment::connect(world);
    ASSERT_NE(host, nullptr);
    const SharedMemory memory = host->share(kRanks * kRowBytes, 0);
    const Mapping all = memory.map_read_only();
    const Mapping mine = memory.map_writable(world.rank * kRowBytes, kRowBytes);

    // One copy: both mappings of every rank are of one file, the owner's a writable and the other a read-only one.
    const auto whole = mapping_at(all.data()), own = mapping_at(mine.data());
    EXPECT_EQ(whole.permissions, "r--s");
    EXPECT_EQ(own.permissions, "rw-s");
    EXPECT_NE(whole.inode, 0);
    EXPECT_EQ(own.inode, whole.inode);
    EXPECT_EQ(own.device, whole.device);
    unsigned major = 0, minor = 0;
    ASSERT_EQ(std::sscanf(whole.device.c_str(), "%x:%x", &major, &minor), 2);
    const std::array<double, 2> place = {major * 65536.0 + minor, static_cast<double>(whole.inode)};
    const auto places = host->exchange(place);
    for (size_t i = 0; i < places.size(); ++i) EXPECT_EQ(places[i], place[i % 2]);

    const SocketTrap trap;
    EXPECT_GE(trap.replaced(), world.rank == 0 ? kRanks - 1 : 1) << "the sockets of the connection were there";
    const auto descriptors = testing::open_descriptors();

    // No call on the transport from here: each owner writes, each rank reads the others' rows where it has them.
    auto* rows = reinterpret_cast<Rows*>(mine.data());
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (uint64_t round = 1; round <= kRounds; ++round) {
      rows->values.fill(round * 1000 + static_cast<uint64_t>(world.rank));
      rows->written.store(round, std::memory_order_release);
      for (int r = 0; r < kRanks; ++r) {
        const auto* theirs = reinterpret_cast<const Rows*>(all.data() + r * kRowBytes);
        while (theirs->written.load(std::memory_order_acquire) < round) {
          ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "rank " << world.rank << " does not see rank " << r;
          std::this_thread::yield();
        }
        // The owner may be one round further already, or in the middle of it, but never behind.
        for (const uint64_t value : theirs->values) ASSERT_GE(value, round * 1000 + static_cast<uint64_t>(r));
      }
    }
    // Synchronisation is memory too.
    EXPECT_EQ(host->exchange(std::array{world.rank + 0.5}), (std::vector{0.5, 1.5, 2.5}));

    EXPECT_EQ(trap.caught(), 0);
    EXPECT_EQ(host->bytes_sent(), 0);
    EXPECT_EQ(testing::open_descriptors(), descriptors);
  });
  for (const int status : statuses) EXPECT_EQ(status, 0);
}

TEST(ZeroCopyTest, TheTrapSeesWhatIsSentOverASocketThatWasThere) {
  const auto statuses = run_processes(1, [](const World&) {
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    const SocketTrap trap;
    EXPECT_EQ(trap.replaced(), 2);
    EXPECT_EQ(trap.caught(), 0);
    double value = 1;
    EXPECT_EQ(send(pair[0], &value, sizeof(value), 0), 8);
    EXPECT_EQ(trap.caught(), 8);
    EXPECT_EQ(write(pair[1], &value, 5), 5);
    EXPECT_EQ(trap.caught(), 13);
    EXPECT_EQ(recv(pair[1], &value, sizeof(value), 0), -1) << "a peer gets nothing";
  });
  EXPECT_EQ(statuses[0], 0);
}

}  // namespace
}  // namespace sherd
