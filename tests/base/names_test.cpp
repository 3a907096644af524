#include "sherd/base/names.h"

#include <gtest/gtest.h>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

enum class Fruit { apple, pear, plum };
constexpr Name<Fruit> kFruitNames[] = {{Fruit::apple, "apple"}, {Fruit::pear, "pear"}, {Fruit::plum, "plum"}};

TEST(Names, GoBothWays) {
  for (const auto& name : kFruitNames) {
    EXPECT_EQ(text_of(kFruitNames, name.value), name.text);
    EXPECT_EQ(find_named(kFruitNames, name.text), name.value);
  }
  EXPECT_EQ(find_named(kFruitNames, "appl"), std::nullopt);
  EXPECT_EQ(texts_of(kFruitNames), (std::vector<std::string>{"apple", "pear", "plum"}));
  EXPECT_EQ(named(kFruitNames, "plum", "fruit", "pear"), Fruit::plum);
}

TEST(Names, AnUnknownOneIsAMistakeThatShowsThemAll) {
  expect_config_error([] { named(kFruitNames, "fig", "fruit", "pear"); },
                      {"[fruit] got 'fig', expected apple, pear or plum; try pear"});
}

TEST(Names, AlternativesReadAsASentence) {
  EXPECT_EQ(alternatives({}), "");
  EXPECT_EQ(alternatives({"a"}), "a");
  EXPECT_EQ(alternatives({"a", "b"}), "a or b");
  EXPECT_EQ(alternatives({"a", "b", "c"}, "and"), "a, b and c");
}

}  // namespace
}  // namespace sherd
