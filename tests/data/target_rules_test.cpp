#include "sherd/data/target_rules.h"

#include <gtest/gtest.h>

#include "sherd/data/split.h"
#include "tests/data/expect_config_error.h"
#include "tests/data/temporary_folder.h"

namespace sherd {
namespace {

std::vector<int> targets_of(const TokenSource& source, int64_t first, int64_t count) {
  std::vector<uint8_t> out(static_cast<size_t>(count), 99);
  source.read_targets(first, count, out.data());
  return {out.begin(), out.end()};
}

struct Files {
  TemporaryFolder folder;
  std::string text = folder.write("text", "ab.cd..efg");
  std::string mask = folder.write("mask", std::string("\1\0\377\1\1\1\0\1\1\1", 10));
  std::shared_ptr<const TokenSource> source = open_text({text});
};

using Ints = std::vector<int>;

TEST(TargetRules, WithoutRulesEveryTokenIsATarget) {
  const Files files;
  EXPECT_EQ(with_target_rules(files.source, {}), files.source);
  EXPECT_TRUE(files.source->all_are_targets());
  EXPECT_EQ(targets_of(*files.source, 3, 4), Ints({1, 1, 1, 1}));
}

TEST(TargetRules, MaskAndSeparatorFromAnywhereInTheStream) {
  const Files files;
  const Ints masked = {1, 0, 1, 1, 1, 1, 0, 1, 1, 1}, documents = {0, 1, 1, 0, 1, 1, 0, 0, 1, 1};
  Ints both = masked;
  for (size_t i = 0; i < both.size(); ++i) both[i] &= documents[i];
  const std::pair<TargetRules, Ints> cases[] = {{{files.mask, std::nullopt}, masked},
                                                {{"", '.'}, documents},
                                                {{files.mask, '.'}, both},
                                                {{"", 'z'}, {0, 1, 1, 1, 1, 1, 1, 1, 1, 1}}};
  for (const auto& [rules, expected] : cases) {
    const auto source = with_target_rules(files.source, rules);
    EXPECT_FALSE(source->all_are_targets());
    EXPECT_EQ(source->size(), 10);
    EXPECT_EQ(source->kind(), TokenKind::bytes);
    int64_t token = 0;
    source->read(4, 1, &token);
    EXPECT_EQ(token, 'd');
    for (int64_t first = 0; first <= 10; ++first)
      for (int64_t count = 0; count <= 10 - first; ++count)
        EXPECT_EQ(targets_of(*source, first, count), Ints(expected.begin() + first, expected.begin() + first + count));
    const Split split = split_source(source, 0.5, 2);
    EXPECT_EQ(targets_of(*split.validation, 0, 5), Ints(expected.begin() + 5, expected.end()));
    EXPECT_FALSE(split.train->all_are_targets());
    EXPECT_THROW(targets_of(*split.train, 3, 3), std::logic_error);
  }
}

TEST(TargetRules, LongReadsFindEverySeparator) {
  const auto source = with_target_rules(synthetic_source(50, 1), {"", 11});
  constexpr int64_t kCount = 10000;
  const Ints targets = targets_of(*source, 100, kCount);
  std::vector<int64_t> tokens(kCount);
  source->read(99, kCount, tokens.data());
  for (size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(targets[i], tokens[i] == 11 ? 0 : 1) << i;
}

TEST(TargetRules, MistakesAreConfigErrors) {
  const Files files;
  const std::string small = files.folder.write("small", "abc");
  expect_config_error(
      [&] {
        with_target_rules(files.source, {small, {}});
      },
      {"data.mask", "3 bytes", "one byte a token: 10"});
  expect_config_error([&] { with_target_rules(files.source, {"/none", {}}); }, {"/none"});
  expect_config_error([&] { with_target_rules(files.source, {"", -1}); }, {"data.separator", "got -1"});
}

}  // namespace
}  // namespace sherd
