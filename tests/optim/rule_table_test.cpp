#include "sherd/optim/rule_table.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

TEST(RuleTable, HasOneCompleteEntryOfEachRule) {
  std::set<std::string_view> names;
  std::set<UpdateRuleOptions::Kind> kinds;
  for (const RuleEntry& entry : update_rules()) {
    SCOPED_TRACE(entry.name);
    EXPECT_TRUE(names.insert(entry.name).second && names.insert(entry.class_name).second);
    EXPECT_TRUE(kinds.insert(entry.kind).second);
    EXPECT_EQ(&rule_entry(entry.kind), &entry);
    EXPECT_EQ(update_kind(entry.name), entry.kind);
    EXPECT_FALSE(entry.meaning.empty());
    ASSERT_NE(entry.make({.kind = entry.kind}), nullptr);
    EXPECT_TRUE(entry.takes("lr") && entry.takes("weight_decay") && !entry.takes("no_such_option"));
    for (const RuleOption& option : entry.options) {
      EXPECT_FALSE(option.meaning.empty()) << option.name;
      const std::array<double, 2> standard{option.standard, option.second};
      EXPECT_NO_THROW(option.check(std::span(standard).first(option.type == RuleOption::Type::betas ? 2 : 1)));
    }
  }
}

TEST(RuleTable, RulesWithEightBitMomentsKeepCodesAndTheOthersDoNot) {
  for (const RuleEntry& entry : update_rules()) {
    const auto rule = entry.make({.kind = entry.kind, .momentum = entry.takes("momentum") ? 0.9 : 0.0});
    const auto state = rule->state({.elements = kMomentBlock, .moments = MomentType::eight_bits});
    EXPECT_EQ(state[0].type == at::kByte, entry.moments == RuleEntry::Moments::fp32_or_eight_bits) << entry.name;
  }
}

TEST(RuleTable, RefusesValuesOutOfRange) {
  const RuleEntry& adam = rule_entry(UpdateRuleOptions::Kind::adam);
  const auto check = [&](std::string_view name, std::vector<double> values) {
    for (const RuleOption& option : adam.options)
      if (option.name == name) option.check(values);
  };
  expect_config_error([&] { check("lr", {-1}); }, {"[optim] got lr=-1, expected 0 or more"});
  expect_config_error([&] { check("lr", {NAN}); }, {"got lr=nan"});
  expect_config_error(
      [&] {
        check("betas", {0.9, 1.0});
      },
      {"got betas=(0.9, 1), expected two numbers from 0 to below 1"});
  expect_config_error([&] { check("betas", {0.9}); }, {"got betas=(0.9)"});
  EXPECT_NO_THROW(check("lr", {0}));
  expect_config_error([] { update_kind("adagrad"); }, {"got 'adagrad', expected adamw, adam, sgd or lion; try adamw"});
}

}  // namespace
}  // namespace sherd
