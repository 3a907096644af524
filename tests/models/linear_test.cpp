#include "sherd/models/linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

double relative_distance(const at::Tensor& got, const at::Tensor& expected) {
  return ((got - expected).norm() / expected.norm()).item<double>();
}

struct Leaves {
  at::Tensor x;
  std::vector<at::Tensor> weights, biases;

  Leaves(const Leaves& other) : x(other.x.detach().clone().requires_grad_()) {
    for (const auto& w : other.weights) weights.push_back(w.detach().clone().requires_grad_());
    for (const auto& b : other.biases) biases.push_back(b.detach().clone().requires_grad_());
  }
  Leaves(at::IntArrayRef sizes, const std::vector<int64_t>& outs) : x(at::randn(sizes).requires_grad_()) {
    for (const int64_t out : outs) {
      weights.push_back(at::randn({out, sizes.back()}).requires_grad_());
      biases.push_back(at::randn({out}).requires_grad_());
    }
  }
};

enum class Biases { none, all };

void expect_linear(const Leaves& ours, Biases biases) {
  const Leaves plain(ours);
  const auto bias = [&](const Leaves& leaves, size_t i) {
    return biases == Biases::all ? leaves.biases[i] : at::Tensor();
  };
  const auto outputs = linears(
      ours.x, {{ours.weights[0], bias(ours, 0)}, {ours.weights[1], bias(ours, 1)}, {ours.weights[2], bias(ours, 2)}});
  ASSERT_EQ(outputs.size(), 3U);
  at::Tensor sum, plain_sum;
  for (size_t i = 0; i < 3; ++i) {
    const auto y = at::linear(plain.x, plain.weights[i], bias(plain, i));
    ASSERT_EQ(outputs[i].sizes(), y.sizes());
    EXPECT_LT(relative_distance(outputs[i], y), 1e-6);
    const auto term = outputs[i].square().sum(), plain_term = y.square().sum();
    sum = i == 0 ? term : sum + term;
    plain_sum = i == 0 ? plain_term : plain_sum + plain_term;
  }
  sum.backward();
  plain_sum.backward();
  EXPECT_LT(relative_distance(ours.x.grad(), plain.x.grad()), 1e-6);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_LT(relative_distance(ours.weights[i].grad(), plain.weights[i].grad()), 1e-6);
    if (biases == Biases::none) continue;
    EXPECT_LT(relative_distance(ours.biases[i].grad(), plain.biases[i].grad()), 1e-6);
  }
}

TEST(Linears, AreTorchsLinearsWithTheirGradients) {
  for (const auto biases : {Biases::none, Biases::all}) {
    expect_linear(Leaves({2, 5, 7}, {3, 11, 1}), biases);
    expect_linear(Leaves({9, 4}, {8, 2, 2}), biases);
  }
}

TEST(Linears, GiveGradientsOnlyWhereTheyAreWanted) {
  Leaves leaves({4, 6}, {3, 5});
  leaves.weights[0].requires_grad_(false);
  leaves.biases[1].requires_grad_(false);
  leaves.x.requires_grad_(false);
  const auto y = linears(leaves.x, {{leaves.weights[0], leaves.biases[0]}, {leaves.weights[1], leaves.biases[1]}});
  (y[0].sum() + y[1].sum()).backward();
  EXPECT_FALSE(leaves.x.grad().defined());
  EXPECT_FALSE(leaves.weights[0].grad().defined());
  EXPECT_FALSE(leaves.biases[1].grad().defined());
  EXPECT_TRUE(leaves.biases[0].grad().equal(at::full({3}, 4.0)));
  EXPECT_LT(relative_distance(leaves.weights[1].grad(), leaves.x.sum(0).expand({5, 6})), 1e-6);
}

TEST(Linears, HaveOutputsThatMayBeWrittenInPlace) {
  Leaves leaves({4, 6}, {3, 5});
  auto y = linears(leaves.x, {{leaves.weights[0], {}}, {leaves.weights[1], {}}});
  y[0].mul_(2.0);
  (y[0].sum() + y[1].sum()).backward();
  const auto expected = (2.0 * leaves.weights[0].sum(0) + leaves.weights[1].sum(0)).expand({4, 6});
  EXPECT_LT(relative_distance(leaves.x.grad(), expected), 1e-6);
}

TEST(Linears, WantABiasForEachOrForNone) {
  const Leaves leaves({4, 6}, {3, 5});
  EXPECT_ANY_THROW(linears(leaves.x, {{leaves.weights[0], leaves.biases[0]}, {leaves.weights[1], {}}}));
}

TEST(Linears, LeaveAnUnusedOutputsWeightWithZeroGradient) {
  Leaves leaves({4, 6}, {3, 5});
  const auto y = linears(leaves.x, {{leaves.weights[0], {}}, {leaves.weights[1], {}}});
  y[0].sum().backward();
  EXPECT_EQ(leaves.weights[1].grad().abs().sum().item<double>(), 0.0);
}

}  // namespace
}  // namespace sherd
