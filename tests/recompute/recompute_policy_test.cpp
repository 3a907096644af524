#include "sherd/recompute/recompute_policy.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

std::vector<size_t> chosen(std::string_view text) {
  std::vector<size_t> units;
  for (size_t u = 0; u < 7; ++u)
    if (RecomputePolicy::parse(text).applies_to(u)) units.push_back(u);
  return units;
}

TEST(RecomputePolicy, ChoosesUnits) {
  EXPECT_EQ(chosen("none"), std::vector<size_t>());
  EXPECT_EQ(chosen("full"), (std::vector<size_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(chosen("every:1"), chosen("full"));
  EXPECT_EQ(chosen("every:3"), (std::vector<size_t>{0, 3, 6}));
  EXPECT_EQ(chosen("every:100"), (std::vector<size_t>{0}));
}

TEST(RecomputePolicy, WritesItself) {
  for (const char* text : {"none", "full", "every:2", "every:12"}) EXPECT_EQ(RecomputePolicy::parse(text).text(), text);
}

TEST(RecomputePolicy, RefusesAnythingElse) {
  for (const char* text : {"", "Full", "every", "every:", "every:0", "every:-1", "every:2x", "every: 2", "2", "true",
                           "every:99999999999999"})
    EXPECT_THROW(RecomputePolicy::parse(text), ConfigError) << text;
}

}  // namespace
}  // namespace sherd
