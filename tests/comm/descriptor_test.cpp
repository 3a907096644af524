// Ranks that are in different collectives: all are told who is in what, and nothing hangs.
#include "sherd/comm/descriptor.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <barrier>

#include "sherd/base/error.h"
#include "tests/support/ranks.h"

namespace sherd {
namespace {

using testing::Kind;
using testing::run_ranks;

TEST(Descriptor, TextAndEquality) {
  using K = Descriptor::Kind;
  const Descriptor a(K::all_gather, 10, "unit 'a'");
  EXPECT_EQ(a.text(), "all_gather of unit 'a' (10 elements)");
  EXPECT_EQ(Descriptor(K::exchange, 2, "").text(), "exchange (2 elements)");
  EXPECT_EQ(a, Descriptor(K::all_gather, 10, "unit 'a'"));
  EXPECT_NE(a, Descriptor(K::all_gather, 10, "unit 'b'"));
  EXPECT_NE(a, Descriptor(K::all_gather, 11, "unit 'a'"));
  EXPECT_NE(a, Descriptor(K::all_to_all, 10, "unit 'a'"));
  const std::string long_name(500, 'x');
  EXPECT_EQ(Descriptor(K::all_to_all, 1, long_name).text(),
            fmt::format("all_to_all of {} (1 elements)", std::string(111, 'x')));
  EXPECT_EQ(mismatch(0, a, 1, Descriptor(K::all_to_all, 40, "unit 'b'")),
            "rank 1 is in all_to_all of unit 'b' (40 elements), rank 0 in all_gather of unit 'a' (10 elements); "
            "try to run the same units in the same order on all ranks");
}

class MismatchTest : public ::testing::TestWithParam<std::tuple<Kind, int>> {};
INSTANTIATE_TEST_SUITE_P(Kinds, MismatchTest,
                         ::testing::Combine(::testing::Values(Kind::threads, Kind::gloo), ::testing::Range(2, 5)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", testing::name_of(std::get<0>(info.param)),
                                              std::get<1>(info.param));
                         });

using Call = std::function<Pending(Transport&)>;

Call gather(int64_t elements, const char* what) {
  return [=](Transport& transport) {
    return transport.all_gather(at::full({elements}, 1.0), at::full({elements * transport.size()}, -1.0), what);
  };
}
Call exchange_pieces(int64_t elements, const char* what) {
  return [=](Transport& transport) {
    const int64_t all = elements * transport.size();
    return transport.all_to_all(at::full({all}, 1.0), at::full({all}, -1.0), what);
  };
}
Call exchange_values(size_t count) {
  return [=](Transport& transport) {
    transport.exchange(std::vector<double>(count, 1.0));
    return Pending();
  };
}

// The last rank issues another collective than all others: every rank's error names both, and all can go on after it.
TEST_P(MismatchTest, IsAnErrorOnAllRanksThatNamesBothSides) {
  const auto [kind, ranks] = GetParam();
  struct Case {
    Call most, last;
    std::string most_text, last_text;
  };
  const std::vector<Case> cases = {
      {gather(10, "unit 'a'"), gather(10, "unit 'b'"), "all_gather of unit 'a' (10 ", "all_gather of unit 'b' (10 "},
      {gather(10, "unit 'a'"), exchange_pieces(10, "unit 'a'"), "all_gather of unit 'a'", "all_to_all of unit 'a'"},
      {gather(10, "unit 'a'"), gather(5000, "unit 'a'"), "unit 'a' (10 elements)", "unit 'a' (5000 elements)"},
      {gather(100'000, "unit 'a'"), gather(7, "unit 'a'"), "unit 'a' (100000 elements)", "unit 'a' (7 elements)"},
      {exchange_pieces(3, ""), exchange_pieces(100'000, ""), "all_to_all (", "all_to_all ("},
      {exchange_pieces(100'000, ""), exchange_pieces(3, ""), "all_to_all (", "all_to_all ("},
      {exchange_values(1), exchange_values(2), "exchange (1 elements)", "exchange (2 elements)"},
      {exchange_values(0), gather(1, "unit 'a'"), "exchange (0 elements)", "all_gather of unit 'a' (1 elements)"},
  };
  std::barrier all_have_checked(ranks);
  run_ranks(ranks, kind, [&](Transport& transport) {
    for (const Case& c : cases) {
      const int last = transport.size() - 1;
      std::string text = "no fault";
      try {
        (transport.rank() == last ? c.last : c.most)(transport).wait();
      } catch (const FaultError& error) {
        text = error.what();
      }
      EXPECT_NE(text.find(c.most_text), std::string::npos) << text;
      EXPECT_NE(text.find(c.last_text), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("rank {} ", last)), std::string::npos) << text;
      EXPECT_NE(text.find("; try to run the same units in the same order on all ranks"), std::string::npos) << text;
      transport.recover();
      gather(20, "unit 'a'")(transport).wait();
      all_have_checked.arrive_and_wait();
    }
  });
}

// Many are under way, and the last one is waited for first: the first difference is the one that is named.
TEST_P(MismatchTest, IsFoundBehindManyThatAreUnderWay) {
  const auto [kind, ranks] = GetParam();
  run_ranks(ranks, kind, [](Transport& transport) {
    std::vector<Pending> pending;
    std::string text = "no fault";
    for (int i = 0; i < 8; ++i) {
      const bool swapped = transport.rank() == 0 && (i == 3 || i == 4);
      const int unit = swapped ? 7 - i : i;
      pending.push_back(gather(10 + unit, fmt::format("unit '{}'", unit).c_str())(transport));
    }
    try {
      while (!pending.empty()) {
        pending.back().wait();
        pending.pop_back();
      }
    } catch (const FaultError& error) {
      text = error.what();
    }
    EXPECT_NE(text.find("all_gather of unit"), std::string::npos) << text;
    EXPECT_NE(text.find("unit '3'"), std::string::npos) << text;
    EXPECT_NE(text.find("unit '4'"), std::string::npos) << text;
    pending.clear();
    transport.recover();
    gather(20, "unit 'a'")(transport).wait();
  });
}

}  // namespace
}  // namespace sherd
