#include "sherd/optim/optim_groups.h"

#include <gtest/gtest.h>

#include <limits>

#include "sherd/base/error.h"

namespace sherd {
namespace {

Hyperparameters with_lr(double lr) { return {.lr = lr}; }

TEST(OptimGroups, TheFirstMatchWins) {
  const OptimGroups groups(with_lr(1.0), {{{"*norm*", "*.bias"}, with_lr(2.0)}, {{"head*", "*.bias"}, with_lr(3.0)}});
  EXPECT_EQ(groups.find("model.norm.weight").lr, 2.0);
  EXPECT_EQ(groups.find("head.bias").lr, 2.0);
  EXPECT_EQ(groups.find("head.weight").lr, 3.0);
  EXPECT_EQ(groups.find("model.embed_tokens.weight").lr, 1.0);
  EXPECT_EQ(OptimGroups(with_lr(4.0), {}).find("anything").lr, 4.0);
}

TEST(OptimGroups, PatternsThatMatchNothingAreListed) {
  const OptimGroups groups(with_lr(1.0), {{{"*norm*", "*.biass"}, with_lr(2.0)}, {{"haed*", "*"}, with_lr(3.0)}});
  const std::vector<std::string> fqns = {"norm.weight", "head.weight", "head.bias"};
  EXPECT_EQ(groups.unused_patterns(fqns), (std::vector<std::string>{"*.biass", "haed*"}));
  EXPECT_EQ(groups.unused_patterns({}).size(), 4u);
  EXPECT_TRUE(OptimGroups(with_lr(1.0), {}).unused_patterns(fqns).empty());
}

TEST(OptimGroups, ImpossibleValuesAreErrors) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_NO_THROW(Hyperparameters{}.validate());
  EXPECT_NO_THROW((Hyperparameters{.lr = 0.0, .beta1 = 0.0, .beta2 = 0.0, .weight_decay = 0.0}.validate()));
  for (const Hyperparameters& bad : std::vector<Hyperparameters>{
           {.lr = -1.0},
           {.lr = nan},
           {.lr = infinity},
           {.beta1 = 1.0},
           {.beta1 = -0.1},
           {.beta1 = nan},
           {.beta2 = 1.0},
           {.beta2 = nan},
           {.eps = 0.0},
           {.eps = -1e-8},
           {.eps = 1e-50},
           {.eps = infinity},
           {.weight_decay = -0.1},
           {.weight_decay = nan},
       }) {
    EXPECT_THROW(bad.validate(), ConfigError);
    EXPECT_THROW(OptimGroups(bad, {}), ConfigError);
    EXPECT_THROW(OptimGroups({}, {{{"*"}, bad}}), ConfigError);
  }
  EXPECT_THROW(OptimGroups({}, {{{"*bias", ""}, {}}}), ConfigError);
}

TEST(OptimGroups, ErrorsNameTheKey) {
  try {
    Hyperparameters{.beta2 = 1.5}.validate();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()), "[optimizer.betas[1]] got 1.5, expected 0 <= beta < 1; try 0.9");
  }
}

}  // namespace
}  // namespace sherd
