#include "sherd/memory/ledger.h"

#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <thread>
#include <vector>

namespace sherd {
namespace {

using Units = std::map<std::string, int64_t>;

TEST(Ledger, StartsEmpty) {
  const Ledger ledger;
  EXPECT_EQ(ledger.total(), 0);
  for (int k = 0; k < kMemoryKinds; ++k) {
    const auto kind = static_cast<MemoryKind>(k);
    EXPECT_EQ(ledger.total(kind), 0);
    EXPECT_EQ(ledger.peak(kind), 0);
    EXPECT_TRUE(ledger.by_unit(kind).empty());
  }
}

TEST(Ledger, EveryKindHasItsName) {
  std::set<std::string_view> names;
  for (int k = 0; k < kMemoryKinds; ++k) names.insert(name_of(static_cast<MemoryKind>(k)));
  EXPECT_EQ(names,
            (std::set<std::string_view>{"parameters", "gradients", "master", "moments", "unsharded", "communication"}));
}

TEST(Ledger, ABookingLastsAsLongAsItLives) {
  Ledger ledger;
  {
    const Booking one = ledger.book(MemoryKind::moments, "blocks.0", 100);
    const Booking two = ledger.book(MemoryKind::moments, "blocks.1", 30);
    const Booking three = ledger.book(MemoryKind::moments, "blocks.0", 7);
    const Booking other = ledger.book(MemoryKind::gradients, "blocks.0", 1000);
    EXPECT_EQ(ledger.total(MemoryKind::moments), 137);
    EXPECT_EQ(ledger.total(MemoryKind::gradients), 1000);
    EXPECT_EQ(ledger.total(), 1137);
    EXPECT_EQ(ledger.by_unit(MemoryKind::moments), (Units{{"blocks.0", 107}, {"blocks.1", 30}}));
    EXPECT_EQ(ledger.by_unit(MemoryKind::gradients), (Units{{"blocks.0", 1000}}));
  }
  EXPECT_EQ(ledger.total(), 0);
  EXPECT_TRUE(ledger.by_unit(MemoryKind::moments).empty());
}

TEST(Ledger, ThePeakStaysAndIsPerKind) {
  Ledger ledger;
  { const Booking large = ledger.book(MemoryKind::unsharded, "", 500); }
  const Booking small = ledger.book(MemoryKind::unsharded, "", 20);
  EXPECT_EQ(ledger.total(MemoryKind::unsharded), 20);
  EXPECT_EQ(ledger.peak(MemoryKind::unsharded), 500);
  EXPECT_EQ(ledger.peak(MemoryKind::parameters), 0);
  const Booking more = ledger.book(MemoryKind::unsharded, "", 481);
  EXPECT_EQ(ledger.peak(MemoryKind::unsharded), 501);
}

TEST(Ledger, AMovedBookingCountsOnce) {
  Ledger ledger;
  Booking first = ledger.book(MemoryKind::master, "a", 10);
  Booking second(std::move(first));
  EXPECT_EQ(ledger.total(), 10);
  first = ledger.book(MemoryKind::master, "b", 5);
  EXPECT_EQ(ledger.total(), 15);
}

TEST(Ledger, WhatIsAssignedToEndsAtOnce) {
  Ledger ledger;
  Booking first = ledger.book(MemoryKind::master, "a", 10);
  Booking second = ledger.book(MemoryKind::master, "b", 5);
  first = std::move(second);
  EXPECT_EQ(ledger.by_unit(MemoryKind::master), (Units{{"b", 5}})) << "though `second` is still there";
  first = Booking();
  EXPECT_EQ(ledger.total(), 0);
}

TEST(Ledger, ABookingMayOutliveItsLedger) {
  std::optional<Ledger> ledger(std::in_place);
  const Booking booking = ledger->book(MemoryKind::parameters, "a", 10);
  ledger.reset();
}

TEST(Ledger, ThreadsMayBookAtOnce) {
  Ledger ledger;
  const Booking kept = ledger.book(MemoryKind::gradients, "kept", 3);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&ledger, t] {
        for (int i = 0; i < 2000; ++i) {
          const Booking booking = ledger.book(MemoryKind::gradients, std::to_string(t), i + 1);
          EXPECT_GE(ledger.total(), i + 4);
        }
      });
  }
  EXPECT_EQ(ledger.total(), 3);
  EXPECT_GE(ledger.peak(MemoryKind::gradients), 2003);
  EXPECT_EQ(ledger.by_unit(MemoryKind::gradients), (Units{{"kept", 3}}));
}

}  // namespace
}  // namespace sherd
