// Signals that interrupt system calls: every wait and transfer goes on.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <sys/time.h>

#include <csignal>

#include "tests/support/ranks.h"

namespace sherd::testing {
namespace {

/// SIGALRM every 200 microseconds, whose handler does not restart what it interrupts.
void interrupt_all_the_time() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  const itimerval often = {.it_interval = {0, 200}, .it_value = {0, 200}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &often, nullptr), 0);
}

TEST(Interrupts, EndNoWaitOfTheHostTransport) {
  const auto statuses = run_processes(3, [](const World& world) {
    interrupt_all_the_time();
    const auto host = HostSegment::connect(world);
    ASSERT_NE(host, nullptr);
    for (int turn = 0; turn < 50; ++turn) {
      if (world.rank == turn % 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the others sleep longer
      const double mine = world.rank + 10 * turn;
      EXPECT_EQ(host->exchange({&mine, 1}), (std::vector<double>{10.0 * turn, 10.0 * turn + 1, 10.0 * turn + 2}));
      const SharedMemory memory = host->share(4096 * (turn + 1), turn % 3);
      EXPECT_EQ(memory.bytes(), 4096 * (turn + 1));
      const at::Tensor whole = at::zeros({3000});
      host->all_gather(at::full({1000}, mine), whole, "turns").wait();
      for (int r = 0; r < 3; ++r) EXPECT_EQ(whole[1000 * r].item<double>(), r + 10 * turn);
    }
  });
  EXPECT_EQ(statuses, (std::vector<int>{0, 0, 0}));
}

}  // namespace
}  // namespace sherd::testing
