#include "sherd/shard/unit_policy.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "sherd/shard/discover.h"
#include "tests/shard/toy_model.h"

namespace sherd::testing {
namespace {

struct Small : torch::nn::Module {
  Small() { register_parameter("w", at::ones({2, 2})); }
  at::Tensor forward(const at::Tensor& x) { return x; }
};

/// A unit with a unit in it.
struct Outer : torch::nn::Module {
  Outer() {
    register_parameter("w", at::ones({10}));
    register_module("inner", std::make_shared<UnitModule<Small>>());
  }
  at::Tensor forward(const at::Tensor& x) { return x; }
};

struct PolicyModel : torch::nn::Module {
  PolicyModel() {
    register_module("a", std::make_shared<UnitModule<Outer>>());
    register_module("b", std::make_shared<UnitModule<Small>>());
    const auto twice = std::make_shared<UnitModule<Small>>();
    register_module("c", twice);
    register_module("d", twice);
  }
};

using Owned = std::map<std::string, std::vector<std::string>>;

Owned owned(const UnitPolicy& policy) {
  PolicyModel model;
  Owned result;
  for (const auto& unit : discover_units(model, policy))
    for (const auto& parameter : unit.parameters) result[unit.name].push_back(parameter.fqn);
  return result;
}

TEST(UnitPolicy, WithoutOneEveryUnitCounts) {
  const Owned every{{"a", {"a.w"}}, {"a.inner", {"a.inner.w"}}, {"b", {"b.w"}}, {"c", {"c.w"}}};
  EXPECT_EQ(owned({}), every);
  EXPECT_EQ(owned(all_units()), every);
}

TEST(UnitPolicy, BySizeWithWhatIsInside) {
  EXPECT_EQ(owned(units_of_at_least(14)), (Owned{{"a", {"a.w", "a.inner.w"}}, {"", {"b.w", "c.w"}}}));
  EXPECT_EQ(owned(units_of_at_least(0)), owned({}));
  EXPECT_THROW(units_of_at_least(-1), ConfigError);
}

TEST(UnitPolicy, ByNames) {
  EXPECT_EQ(owned(units_named({"*inner", "b"})),
            (Owned{{"a.inner", {"a.inner.w"}}, {"b", {"b.w"}}, {"", {"a.w", "c.w"}}}));
  EXPECT_THROW(units_named({}), ConfigError);
}

TEST(UnitPolicy, ByTypeAndByPredicate) {
  EXPECT_EQ(owned(units_of_type<Outer>()), (Owned{{"a", {"a.w", "a.inner.w"}}, {"", {"b.w", "c.w"}}}));
  const UnitPolicy predicate = [](const UnitCandidate& unit) { return unit.name == "c" || unit.parameters == 14; };
  EXPECT_EQ(owned(predicate), (Owned{{"a", {"a.w", "a.inner.w"}}, {"c", {"c.w"}}, {"", {"b.w"}}}));
}

TEST(UnitPolicy, ThatChoosesNothingIsAMistake) {
  EXPECT_THROW(owned(units_of_at_least(1000)), ConfigError);
  EXPECT_THROW(owned(units_named({"nowhere"})), ConfigError);
}

TEST(UnitPolicy, AUnitUnderTwoNamesIsOne) {
  PolicyModel model;
  int units = 0;
  for (const auto& unit : discover_units(model)) units += unit.unit != nullptr ? 1 : 0;
  EXPECT_EQ(units, 4);
}

}  // namespace
}  // namespace sherd::testing
