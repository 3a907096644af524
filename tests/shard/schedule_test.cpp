#include "sherd/shard/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include "sherd/base/error.h"

#include "tests/support/ranks.h"

namespace sherd::testing {
namespace {

Schedule of(const std::vector<size_t>& units) {
  Schedule schedule;
  for (const size_t unit : units) schedule.add(unit);
  return schedule;
}

TEST(Schedule, HashTellsOrdersApart) {
  EXPECT_EQ(of({0, 1, 2}).hash(), of({0, 1, 2}).hash());
  EXPECT_NE(of({0, 1, 2}).hash(), of({0, 2, 1}).hash());
  EXPECT_NE(of({0, 1, 2}).hash(), of({0, 1}).hash());
  EXPECT_NE(of({0}).hash(), of({}).hash());
  EXPECT_LT(of({5, 4, 3}).hash(), std::ldexp(1.0, 52));
  Schedule cleared = of({0, 1});
  cleared.clear();
  EXPECT_EQ(cleared.hash(), of({}).hash());
}

std::vector<double> hashes(const Schedule& schedule, Transport& transport) {
  const double mine = schedule.hash();
  return transport.exchange({&mine, 1});
}

std::string difference(const std::vector<std::vector<size_t>>& ranks) {
  std::mutex mutex;
  std::set<std::string> texts;
  run_ranks(static_cast<int>(ranks.size()), Kind::threads, [&](Transport& transport) {
    const Schedule schedule = of(ranks[static_cast<size_t>(transport.rank())]);
    std::string text;
    try {
      schedule.compare(hashes(schedule, transport), transport, {"", "first", "second"});
    } catch (const FaultError& error) {
      text = error.what();
    }
    const std::lock_guard lock(mutex);
    texts.insert(text);
  });
  EXPECT_EQ(texts.size(), 1u) << "all ranks say the same";
  return *texts.begin();
}

TEST(Schedule, EqualOnesAreFine) {
  EXPECT_EQ(difference({{0, 1, 2}, {0, 1, 2}, {0, 1, 2}}), "");
  EXPECT_EQ(difference({{}, {}}), "");
}

TEST(Schedule, NamesTheFirstDifference) {
  EXPECT_NE(difference({{0, 1, 2}, {0, 1, 2}, {0, 2, 1}})
                .find("got unit 'second' on rank 2 where rank 0 ran unit 'first' (forward 2 of a unit"),
            std::string::npos);
  EXPECT_NE(difference({{0, 1}, {0, 1, 2}}).find("got unit 'second' on rank 1 where rank 0 ran nothing more"),
            std::string::npos);
  EXPECT_NE(difference({{0}, {}}).find("got nothing more on rank 1 where rank 0 ran the root"), std::string::npos);
}

}  // namespace
}  // namespace sherd::testing
