#include "sherd/config/json_reader.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

using nlohmann::json;

TEST(JsonReader, FillsWhatIsThereAndKeepsTheRest) {
  const json document = {{"a", 3},       {"b", {{"c", 0.5}}}, {"s", "x"},
                         {"n", nullptr}, {"flag", true},      {"list", {"p", "q"}}};
  JsonReader reader(document, "");
  int64_t a = 1, missing = 7;
  std::optional<int64_t> none;
  EXPECT_TRUE(reader.integer("a", a, {}));
  EXPECT_FALSE(reader.integer("missing", missing, {}));
  EXPECT_FALSE(reader.integer("also", none, {}));
  EXPECT_EQ(a, 3);
  EXPECT_EQ(missing, 7);
  EXPECT_FALSE(none);
  double c = 0;
  JsonReader below = *reader.object("b");
  EXPECT_TRUE(below.number("c", c, {}));
  EXPECT_EQ(c, 0.5);
  EXPECT_EQ(below.path("c"), "b.c");
  below.finish();
  std::string s;
  bool flag = false;
  std::vector<std::string> list;
  EXPECT_TRUE(reader.string("s", s) && reader.boolean("flag", flag) && reader.strings("list", list));
  EXPECT_TRUE(flag);
  EXPECT_EQ(list, (std::vector<std::string>{"p", "q"}));
  expect_config_error([&] { reader.finish(); }, {"unknown key 'n'"});
  EXPECT_TRUE(reader.is_null("n"));
  reader.finish();
}

TEST(ToInteger, TakesExactlyTheIntegersOfItsRange) {
  constexpr int64_t max = std::numeric_limits<int64_t>::max(), min = std::numeric_limits<int64_t>::min();
  const IntegerRange all{min, max};
  for (int64_t value : {min, int64_t{-1}, int64_t{0}, max}) EXPECT_EQ(to_integer(value, "k", all, 0), value);
  EXPECT_EQ(to_integer(json(9007199254740992.0), "k", all, 0), int64_t{1} << 53);
  EXPECT_EQ(to_integer(json(-0.0), "k", all, 0), 0);
  for (const json& value : {json(uint64_t{1} << 63), json(9.3e18), json(1e16), json(0.5), json("1"), json(true),
                            json(nullptr), json(std::numeric_limits<double>::quiet_NaN()), json(-HUGE_VAL)}) {
    expect_config_error([&] { to_integer(value, "k", all, 0); }, {"'k'", "an integer"});
  }
  EXPECT_EQ(to_integer(2, "k", {2, 3}, 0), 2);
  expect_config_error([] { to_integer(4, "k", {2, 3}, 0); }, {"got 4 for 'k'", "from 2 to 3", "try 2"});
}

TEST(ToNumber, KeepsOpenAndClosedBounds) {
  const NumberRange half_open{.min = 0, .max = 1, .high = Bound::open};
  EXPECT_EQ(to_number(0, "k", half_open, 0.5), 0);
  for (const json& value :
       {json(1), json(1.0), json(-1e-300), json(std::numeric_limits<double>::quiet_NaN()), json("0.5")}) {
    expect_config_error([&] { to_number(value, "k", half_open, 0.5); }, {"of at least 0 and below 1", "try 0.5"});
  }
  const NumberRange positive{.min = 0, .low = Bound::open};
  EXPECT_EQ(to_number(1e-300, "k", positive, 1), 1e-300);
  for (const json& value : {json(0), json(HUGE_VAL)}) {
    expect_config_error([&] { to_number(value, "k", positive, 1); }, {"a number above 0"});
  }
}

TEST(Nearest, FindsTypingMistakesAndNothingElse) {
  const std::vector<std::string> words = {"lr", "betas", "weight_decay", "eps"};
  EXPECT_EQ(nearest("betaz", words), "betas");
  EXPECT_EQ(nearest("weightdecay", words), "weight_decay");
  EXPECT_EQ(nearest("ls", words), "lr");
  EXPECT_EQ(nearest("momentum", words), "");
  EXPECT_EQ(nearest("", words), "");
  EXPECT_EQ(nearest(std::string(5000, 'a'), words), "");
  EXPECT_EQ(nearest("a", {}), "");
}

TEST(Describe, IsShortWhateverTheValue) {
  json deep = 1;
  for (int i = 0; i < 50; ++i) deep = json::array({deep});
  EXPECT_LT(describe(deep).size(), 100u);
  EXPECT_LT(describe(std::string(100000, 'x')).size(), 120u);
  EXPECT_EQ(describe("a\nb"), "\"a\\nb\" (a string)");
  EXPECT_EQ(describe({{"a", 1}}), "an object of 1");
}

}  // namespace
}  // namespace sherd
