#include "sherd/shard/strategy.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

TEST(Strategy, EachSpreadsOneKindOfStateMore) {
  const auto row = [](std::string_view name) {
    const Strategy& s = find_strategy(name);
    EXPECT_EQ(s.name, name);
    return std::array{s.parameters, s.gradients, s.optimizer};
  };
  constexpr Spread whole = Spread::whole, sharded = Spread::sharded;
  EXPECT_EQ(row("ddp"), (std::array{whole, whole, whole}));
  EXPECT_EQ(row("zero1"), (std::array{whole, whole, sharded}));
  EXPECT_EQ(row("zero2"), (std::array{whole, sharded, sharded}));
  EXPECT_EQ(row("zero3"), (std::array{sharded, sharded, sharded}));
  EXPECT_EQ(row("hsdp"), row("zero3"));
  for (const Strategy& s : strategies()) EXPECT_EQ(s.sums == Sums::every_rank, s.name == "ddp");
  EXPECT_EQ(strategies().size(), 5u);
}

TEST(Strategy, RowsThatNoStoreSupportsAreRefused) {
  constexpr Spread whole = Spread::whole, sharded = Spread::sharded;
  const auto refused = [](const Strategy& row) {
    try {
      row.validate({});
      return std::string();
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
  };
  for (const Strategy& row : strategies()) EXPECT_EQ(refused(row), "") << row.name;
  const std::string text = refused({"mine", whole, sharded, whole, Sums::every_rank});
  EXPECT_NE(text.find("[strategy] got 'mine' with parameters whole, gradients sharded, optimizer whole"),
            std::string::npos)
      << text;
  EXPECT_NE(refused({"mine", sharded, whole, sharded}), "");
  EXPECT_NE(refused({"mine", sharded, sharded, whole, Sums::every_rank}), "");
  EXPECT_NE(refused({"mine", whole, whole, whole, Sums::owner}), "");
  EXPECT_NE(refused({"mine", whole, whole, sharded, Sums::every_rank}), "");
}

TEST(Strategy, OnlyHsdpKnowsAMeshOfTwoAxes) {
  for (const Strategy& row : strategies()) {
    const bool knows = row.name == "hsdp";
    EXPECT_EQ(row.axes == MeshAxes::replicate_and_shard, knows);
    if (knows) {
      EXPECT_NO_THROW(row.validate({.replicate = 2, .shard = 2}));
    } else {
      EXPECT_THROW(row.validate({.replicate = 2, .shard = 2}), ConfigError) << row.name;
    }
  }
}

TEST(Strategy, FsdpIsZero3) { EXPECT_EQ(&find_strategy("fsdp"), &find_strategy("zero3")); }

TEST(Strategy, UnknownNameSaysWhichThereAre) {
  for (const char* name : {"zero4", "", "DDP", "zero3 "}) {
    try {
      find_strategy(name);
      ADD_FAILURE() << "found '" << name << "'";
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()),
                fmt::format("[strategy] got '{}', expected ddp, zero1, zero2, zero3, fsdp or hsdp; try zero3", name));
    }
  }
}

}  // namespace
}  // namespace sherd
