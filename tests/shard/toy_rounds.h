// One rank's rounds of the toy groups, without a reducer.
#pragma once

#include <deque>

#include "sherd/shard/reduction.h"
#include "tests/shard/toy_groups.h"

namespace sherd::testing {

/// Drives a store as the reducer does: what blocks a slot is reduced first, the rest as late as possible.
class Rounds {
 public:
  Rounds(Store& store, const StorePlan& plan, int rank) : store_(store), plan_(plan), rank_(rank), done_(4) {}

  void contribute(size_t g, int round, std::chrono::milliseconds pause = {}) {
    for (int64_t blocker = 0; (blocker = store_.slot_blocked_by(g)) >= 0;) {
      ASSERT_EQ(static_cast<size_t>(blocker), pending_.front());
      std::this_thread::sleep_for(pause);
      reduce(Patience::wait);
    }
    const GroupLayout& layout = plan_.groups[g].layout;
    const at::Tensor slot = store_.open_slot(g);
    ASSERT_EQ(slot.numel(), layout.ranks * layout.shard_elements);
    fill_slot(slot, layout, rank_, round);
    const at::Tensor padded = slot.clone();
    zero_padding(layout, padded);
    EXPECT_TRUE(at::equal(slot, padded)) << "the padding of " << layout.unit << " is not zero";
    store_.contribute(g);
    pending_.push_back(g);
    if (rank_ % 2 == 1) reduce(Patience::now_or_not);
  }

  void finish() {
    while (!pending_.empty()) reduce(Patience::wait);
    store_.finish_round();
  }
  void start_window() { done_.assign(4, 0); }

 private:
  void reduce(Patience patience) {
    const size_t g = pending_.front();
    if (!store_.reduce(g, done_[g] == 0 ? Round::first : Round::later, patience)) {
      EXPECT_EQ(patience, Patience::now_or_not);
      return;
    }
    ++done_[g];
    pending_.pop_front();
  }

  Store& store_;
  const StorePlan& plan_;
  int rank_;
  std::vector<int> done_;
  std::deque<size_t> pending_;
};

}  // namespace sherd::testing
