#include "sherd/models/fused.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/models/devices.h"

namespace sherd {
namespace {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<at::Tensor(const Tensors&)>;

// The function's value and the gradients of its inputs for a random gradient of the value.
Tensors value_and_gradients(const Function& function, const Tensors& inputs, at::ScalarType type) {
  Tensors leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().to(type, false, true).requires_grad_());
  const auto y = function(leaves);
  at::manual_seed(9);
  const auto gradient = at::randn(y.sizes(), at::kDouble).to(y.options());
  y.backward(gradient);
  Tensors result{y.detach()};
  for (const auto& leaf : leaves) result.push_back(leaf.grad());
  return result;
}

// Ours in fp32 against the plain formula in fp64; and ours in fp64, which takes the operators, too. What may be off is
// in proportion to the norms of the value and of the gradients of `terms`: the formula itself, or where differences in
// its gradients cancel, one whose gradients are their larger terms.
void expect_matches(const Function& ours, const Function& plain, const Function& terms, const Tensors& inputs) {
  const auto exact = value_and_gradients(plain, inputs, at::kDouble);
  const auto sizes = value_and_gradients(terms, inputs, at::kDouble);
  for (const auto type : {at::kFloat, at::kDouble}) {
    const auto got = value_and_gradients(ours, inputs, type);
    for (size_t i = 0; i < exact.size(); ++i) {
      ASSERT_EQ(got[i].sizes(), exact[i].sizes());
      const double off = (got[i].to(at::kDouble) - exact[i]).norm().item<double>();
      EXPECT_LE(off, (type == at::kFloat ? 4e-7 : 1e-14) * sizes[i].norm().item<double>()) << i;
    }
  }
}

// The same bits however many threads take part.
void expect_independent_of_threads(const Function& function, const Tensors& inputs) {
  Tensors first;
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const auto got = value_and_gradients(function, inputs, at::kFloat);
    if (first.empty()) first = got;
    for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(got[i].equal(first[i])) << i << ", " << threads << " threads";
  }
  at::set_num_threads(before);
}

at::Tensor ours_norm(const Tensors& in) { return rms_norm(in[0], in[1], 1e-5); }
at::Tensor plain_norm(const Tensors& in) { return at::rms_norm(in[0], in[1].sizes(), in[1], 1e-5); }
// The gradient of x is w * dy / rms(x) less its part along x, which may leave next to nothing of it in a short row.
at::Tensor norm_with_fixed_rms(const Tensors& in) {
  return in[0] * in[1] * in[0].detach().square().mean(-1, true).add(1e-5).rsqrt();
}
at::Tensor ours_product(const Tensors& in) { return silu_product(in[0], in[1]); }
at::Tensor plain_product(const Tensors& in) { return at::silu(in[0]) * in[1]; }

TEST(RmsNormOfTensors, MatchesTheFormulaAndItsGradients) {
  for (const auto& [rows, dim] : {std::pair{1, 1}, {1, 2}, {3, 7}, {200, 60}, {65, 512}, {64, 33}})
    expect_matches(ours_norm, plain_norm, norm_with_fixed_rms, {at::randn({2, rows, dim}), at::randn({dim})});
}

TEST(RmsNormOfTensors, HasBitsThatDoNotDependOnThreads) {
  expect_independent_of_threads(ours_norm, {at::randn({3, 133, 300}), at::randn({300})});
}

TEST(RmsNormOfTensors, LeavesAFrozenWeightWithoutGradient) {
  const auto x = at::randn({5, 8}).requires_grad_(), weight = at::randn({8});
  rms_norm(x, weight, 1e-5).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(weight.grad().defined());
}

// A norm that keeps fp32 in a model of 16 bits.
TEST(RmsNormOfTensors, OfAnFp32WeightIsComputedInFp32) {
  const auto wide = at::randn({5, 8}).to(at::kBFloat16).to(at::kFloat).requires_grad_();
  const auto x = wide.detach().to(at::kBFloat16).requires_grad_();
  const auto weight = at::randn({8}).requires_grad_(), same = weight.detach().clone().requires_grad_();
  const auto y = rms_norm(x, weight, 1e-5), expected = rms_norm(wide, same, 1e-5);
  EXPECT_TRUE(at::equal(y, expected.to(at::kBFloat16)));
  y.sum().backward();
  expected.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), wide.grad().to(at::kBFloat16)));
  EXPECT_TRUE(at::equal(weight.grad(), same.grad()));
}

TEST(SiluProductOfTensors, MatchesTheFormulaAndItsGradients) {
  for (const int64_t n : {1, 77, 1000})
    expect_matches(ours_product, plain_product, plain_product, {at::randn({3, n}) * 3, at::randn({3, n})});
}

TEST(SiluProductOfTensors, HasBitsThatDoNotDependOnThreads) {
  expect_independent_of_threads(ours_product, {at::randn({150, 333}), at::randn({150, 333})});
}

TEST(SiluProductOfTensors, TakesTensorsThatAreNotContiguous) {
  const auto gate = at::randn({6, 8}).t(), up = at::randn({8, 6});
  EXPECT_TRUE(silu_product(gate, up).allclose(at::silu(gate) * up));
}

// The plain formula, out of place; heads of 10 elements.
at::Tensor plain_rotation(const at::Tensor& x, const at::Tensor& rope) {
  const auto table = rope.narrow(1, 0, x.size(1)).to(x.scalar_type()).unsqueeze(2);
  const auto halves = x.unflatten(-1, {-1, 10}).chunk(2, -1);
  const auto c = table.select(0, 0), s = table.select(0, 1);
  return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1).flatten(-2);
}

TEST(RotateHalvesOfTensors, MatchesTheFormulaAndItsGradients) {
  const auto angle = at::arange(48 * 5, at::kFloat).view({48, 5}) * 0.3;
  const auto rope = at::stack({angle.cos(), angle.sin()});
  // Into a fresh tensor, which it may write into.
  const auto ours = [&](const Tensors& in) { return rotate_halves(in[0] * 1.0, rope); };
  const auto plain = [&](const Tensors& in) { return plain_rotation(in[0], rope); };
  for (const auto& [batch, time, heads] : {std::tuple{1, 1, 1}, {2, 48, 3}, {3, 17, 6}})
    expect_matches(ours, plain, plain, {at::randn({batch, time, heads * 10})});
  expect_independent_of_threads(ours, {at::randn({7, 45, 80})});
}

TEST(Fused, HasNoSecondDerivatives) {
  const auto x = at::randn({3, 8}).requires_grad_();
  const auto error_of = [](const at::Tensor& y) -> std::string {
    try {
      y.sum().backward({}, /*retain_graph=*/true, /*create_graph=*/true);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(error_of(silu_product(x, x)).find("create_graph"), std::string::npos);
  EXPECT_NE(error_of(rms_norm(x, at::randn({8}), 1e-5)).find("create_graph"), std::string::npos);
}

}  // namespace
}  // namespace sherd
