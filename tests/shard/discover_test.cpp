#include "sherd/shard/discover.h"

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

at::Tensor weight() { return at::randn({3, 2}); }

struct LeafImpl : torch::nn::Module {
  explicit LeafImpl(const at::Tensor& w = weight()) { register_parameter("w", w); }
  at::Tensor forward(at::Tensor x) { return x; }
};
using Leaf = Unit<LeafImpl>;

/// A unit that has units in it, the second below a plain module.
struct BranchImpl : torch::nn::Module {
  BranchImpl() {
    register_parameter("own", weight());
    register_module("first", first);
    plain = register_module("plain", std::make_shared<LeafImpl>());
    plain->register_module("second", second);
  }
  at::Tensor forward(at::Tensor x) { return x; }
  Leaf first, second;
  std::shared_ptr<LeafImpl> plain;
};
using Branch = Unit<BranchImpl>;

struct Root : torch::nn::Module {
  Root() {
    register_parameter("entry", weight());
    register_module("a", a);
    register_module("branch", branch);
    register_module("b", b);
  }
  Leaf a, b;
  Branch branch;
};

std::vector<std::string> names(const FoundUnit& unit) {
  std::vector<std::string> result;
  for (const auto& p : unit.parameters) result.push_back(p.fqn);
  return result;
}

using Names = std::vector<std::string>;

TEST(DiscoverUnits, FindsThemInTheOrderOfTheTree) {
  Root root;
  const auto units = discover_units(root);
  ASSERT_EQ(units.size(), 6u);
  const Names unit_names{"", "a", "branch", "branch.first", "branch.plain.second", "b"};
  const std::vector<size_t> parents{0, 0, 0, 2, 2, 0};
  const std::vector<int> children{3, 0, 2, 0, 0, 0};
  const std::vector<UnitBase*> modules{
      nullptr, root.a.get(), root.branch.get(), root.branch->first.get(), root.branch->second.get(), root.b.get()};
  for (size_t u = 0; u < units.size(); ++u) {
    EXPECT_EQ(units[u].name, unit_names[u]);
    EXPECT_EQ(units[u].parent, parents[u]) << units[u].name;
    EXPECT_EQ(units[u].children, children[u]) << units[u].name;
    EXPECT_EQ(units[u].unit, modules[u]) << units[u].name;
  }
}

TEST(DiscoverUnits, AParameterBelongsToTheInnermostUnit) {
  Root root;
  const auto units = discover_units(root);
  EXPECT_EQ(names(units[0]), Names{"entry"});
  EXPECT_EQ(names(units[1]), Names{"a.w"});
  EXPECT_EQ(names(units[2]), (Names{"branch.own", "branch.plain.w"}));
  EXPECT_EQ(names(units[3]), Names{"branch.first.w"});
  EXPECT_EQ(names(units[4]), Names{"branch.plain.second.w"});
  EXPECT_TRUE(units[1].parameters[0].tensor.is_same(root.a->named_parameters()["w"]));
}

TEST(DiscoverUnits, TheRootMayBeAUnitItself) {
  Leaf leaf;
  const auto units = discover_units(*leaf);
  ASSERT_EQ(units.size(), 1u);
  EXPECT_EQ(units[0].unit, leaf.get());
  EXPECT_EQ(names(units[0]), Names{"w"});
}

TEST(DiscoverUnits, AModelWithoutParametersHasNone) {
  torch::nn::Module empty;
  EXPECT_TRUE(discover_units(empty).at(0).parameters.empty());
}

TEST(DiscoverUnits, ATiedParameterBelongsToTheLowestCommonUnit) {
  Root root;
  Branch& branch = root.branch;
  branch->first->register_parameter("within", root.branch->first->named_parameters()["w"]);  // both in branch.first
  branch->second->register_parameter("sibling", branch->first->named_parameters()["w"]);     // then in branch
  root.b->register_parameter("far", branch->second->named_parameters()["w"]);                // in the root
  branch->first->register_parameter("up", branch->named_parameters()["own"]);                // stays in branch
  const auto units = discover_units(root);
  EXPECT_EQ(names(units[0]), (Names{"entry", "branch.plain.second.w"}));
  EXPECT_EQ(names(units[2]), (Names{"branch.own", "branch.first.w", "branch.plain.w"}));
  EXPECT_EQ(names(units[3]), Names{});
  EXPECT_EQ(names(units[4]), Names{});
  EXPECT_EQ(names(units[5]), Names{"b.w"});
}

TEST(DiscoverUnits, TiedInsideOneUnitItStaysThereOnce) {
  Root root;
  root.a->register_parameter("again", root.a->named_parameters()["w"]);
  EXPECT_EQ(names(discover_units(root)[1]), Names{"a.w"});
}

TEST(DiscoverUnits, AUseInAnEnclosingUnitRaisesAParameter) {
  Root root;
  root.branch->plain->register_parameter("tied", root.branch->second->named_parameters()["w"]);
  const auto units = discover_units(root);
  EXPECT_EQ(names(units[2]), (Names{"branch.own", "branch.plain.w", "branch.plain.tied"}));
  EXPECT_TRUE(units[4].parameters.empty());
}

TEST(DiscoverUnits, AnUndefinedParameterIsNone) {
  Root root;
  root.a->register_parameter("bias", at::Tensor(), /*requires_grad=*/false);
  root.b->register_parameter("bias", at::Tensor(), /*requires_grad=*/false);
  EXPECT_EQ(names(discover_units(root)[1]), Names{"a.w"});
  EXPECT_EQ(parameter_aliases(root).size(), 7u);
}

std::string error_of(Root& root) {
  try {
    discover_units(root);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

void expect_refused(Root& root, const std::string& parameter, const std::string& advice) {
  const std::string text = error_of(root);
  EXPECT_NE(text.find("[shard] got parameter '" + parameter + "'"), std::string::npos) << text;
  EXPECT_NE(text.find("try " + advice), std::string::npos) << text;
}

TEST(DiscoverUnits, OtherTypesThanFloatsOfTwoOrFourBytesAreRefused) {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    Root root;
    root.branch->first->register_parameter("narrow", weight().to(type));
    EXPECT_NO_THROW(discover_units(root));
  }
  for (const at::ScalarType type : {at::kDouble, at::kComplexFloat}) {
    Root root;
    root.branch->first->register_parameter("wide", weight().to(type));
    expect_refused(root, "branch.first.wide", "model.to(torch::kFloat32)");
  }
}

TEST(DiscoverUnits, ViewsAreRefused) {
  const at::Tensor base = at::randn({4, 4});
  const std::vector<at::Tensor> views{base.t(), base.narrow(0, 2, 2), base.narrow(1, 0, 2)};
  for (const at::Tensor& view : views) {
    Root root;
    root.a->register_parameter("view", view);
    expect_refused(root, "a.view", ".contiguous().clone()");
  }
}

TEST(DiscoverUnits, ViewsOfTheFirstRowsAreRefused) {
  Root root;
  root.a->register_parameter("view", at::randn({4, 4}).narrow(0, 0, 2));
  expect_refused(root, "a.view", ".contiguous().clone()");
}

TEST(DiscoverUnits, TwoParametersOverOneStorageAreRefused) {
  Root root;
  root.b->register_parameter("same_memory", root.a->named_parameters()["w"].detach());
  expect_refused(root, "b.same_memory", ".contiguous().clone()");
}

TEST(ParameterAliases, MapEveryNameToTheFirst) {
  Root root;
  root.b->register_parameter("tied", root.a->named_parameters()["w"]);
  using Aliases = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(parameter_aliases(root), (Aliases{{"entry", "entry"},
                                              {"a.w", "a.w"},
                                              {"branch.own", "branch.own"},
                                              {"branch.first.w", "branch.first.w"},
                                              {"branch.plain.w", "branch.plain.w"},
                                              {"branch.plain.second.w", "branch.plain.second.w"},
                                              {"b.w", "b.w"},
                                              {"b.tied", "a.w"}}));
}

}  // namespace
}  // namespace sherd
