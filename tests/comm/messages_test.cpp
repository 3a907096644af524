// Records, bytes and values behind records, on every transport.
#include "sherd/comm/messages.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

struct Place {
  int64_t step = 0;
  uint8_t flag = 0;
  std::array<char, 12> name = {};
};
static_assert(Message<Place> && Message<int> && Message<double>);
static_assert(!Message<std::string> && !Message<const char*> && !Message<std::string_view>);
static_assert(!Message<std::vector<double>> && !Message<std::array<double, 2>> && !Message<std::span<const int>>);

class MessagesTest : public ::testing::TestWithParam<std::tuple<testing::Kind, int>> {
 protected:
  void run(const std::function<void(Transport&)>& body) {
    testing::run_ranks(std::get<1>(GetParam()), std::get<0>(GetParam()), testing::Body(body));
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, MessagesTest,
                         ::testing::Combine(::testing::ValuesIn(testing::kAllKinds), ::testing::Range(1, 4)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(std::get<0>(info.param)),
                                              std::get<1>(info.param));
                         });

TEST_P(MessagesTest, ARecordOfEachRankInRankOrder) {
  run([](Transport& transport) {
    Place mine{.step = 7 + transport.rank(), .flag = 200};
    mine.name = {'r', static_cast<char>('0' + transport.rank())};
    const std::vector<Place> all = transport.exchange(mine, "places");
    ASSERT_EQ(all.size(), static_cast<size_t>(transport.size()));
    for (size_t r = 0; r < all.size(); ++r) {
      EXPECT_EQ(all[r].step, 7 + static_cast<int64_t>(r));
      EXPECT_EQ(all[r].flag, 200);
      EXPECT_EQ(all[r].name[1], static_cast<char>('0' + r));
    }
  });
}

TEST_P(MessagesTest, ValuesBehindARecord) {
  run([](Transport& transport) {
    for (const size_t count : {0UL, 1UL, 70UL, 3000UL}) {
      const std::vector<double> values(count, 0.25 + transport.rank());
      const auto all = transport.exchange(Place{.step = transport.rank()}, values);
      ASSERT_EQ(all.records.size(), static_cast<size_t>(transport.size()));
      for (size_t r = 0; r < all.records.size(); ++r) {
        EXPECT_EQ(all.records[r].step, static_cast<int64_t>(r));
        const auto theirs = all.values_of(r);
        EXPECT_EQ(std::vector<double>(theirs.begin(), theirs.end()),
                  std::vector<double>(count, 0.25 + static_cast<double>(r)));
      }
    }
  });
}

TEST_P(MessagesTest, BytesOfAnyNumber) {
  run([](Transport& transport) {
    for (const size_t count : {0UL, 1UL, 7UL, 8191UL, 8192UL, 8193UL, 20'000UL}) {
      const std::vector<std::byte> mine(count, std::byte(1 + transport.rank()));
      std::vector<std::byte> all(count * static_cast<size_t>(transport.size()));
      transport.exchange_bytes(mine, all);
      for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], std::byte(1 + i / count));
    }
  });
}

TEST_P(MessagesTest, RoomForAnotherNumberIsABug) {
  run([](Transport& transport) {
    std::vector<std::byte> mine(3), all(3 * static_cast<size_t>(transport.size()) + 1);
    EXPECT_THROW(transport.exchange_bytes(mine, all), std::logic_error);
    barrier(transport);
  });
}

// Equal numbers of records and of doubles are not the same message.
TEST_P(MessagesTest, ADifferentRecordIsAnErrorThatNamesItsSize) {
  if (std::get<1>(GetParam()) == 1) GTEST_SKIP() << "nobody to differ from";
  run([](Transport& transport) {
    std::string text = "no fault";
    try {
      if (transport.rank() == 0) {
        transport.exchange(Place());
      } else {
        transport.exchange(std::array{1.0});
      }
    } catch (const FaultError& error) {
      text = error.what();
    }
    if (transport.name() != "host") {
      EXPECT_NE(text.find("exchange (1 elements of 8 bytes)"), std::string::npos) << text;
    }
    EXPECT_NE(text, "no fault");
    transport.recover();
    barrier(transport);  // nobody ends while others still connect
  });
}

}  // namespace
}  // namespace sherd
