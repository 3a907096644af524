#include "sherd/optim/muon.h"

#include <ATen/Parallel.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/linalg_svdvals.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{1, 1},   {1, 40},  {40, 1},   {16, 16}, {17, 64},
                                                          {64, 17}, {96, 96}, {300, 48}, {33, 257}};

TEST(Orthogonalized, KeepsSingularVectorsAndBringsTheirValuesNearOne) {
  at::manual_seed(0);
  for (const auto& [rows, columns] : kShapes) {
    const at::Tensor matrix = at::randn({rows, columns}) * 1e-3;
    const at::Tensor result = orthogonalized(matrix, 5);
    EXPECT_TRUE(result.is_contiguous());
    EXPECT_EQ(result.sizes(), matrix.sizes());
    const auto [u, values, vh] = at::linalg_svd(matrix, false);
    // The small values of a random square matrix are too small for five iterations.
    const at::Tensor in_basis = u.t().matmul(result).matmul(vh.t());
    const at::Tensor own = in_basis.diagonal();
    EXPECT_LT((in_basis - own.diag_embed()).abs().max().item<float>(), 1e-4) << rows << " x " << columns;
    const at::Tensor large = values > 0.05 * values.max();
    EXPECT_GT(own.masked_select(large).min().item<float>(), 0.5) << rows << " x " << columns;
    EXPECT_LT(own.max().item<float>(), 1.3) << rows << " x " << columns;
  }
}

TEST(Orthogonalized, FollowsThePolynomialOfItsSingularValues) {
  at::manual_seed(1);
  const at::Tensor matrix = at::randn({24, 40});
  const auto [u, values, vh] = at::linalg_svd(matrix.to(at::kDouble), false);
  at::Tensor expected = values / values.norm();
  for (int i = 0; i < 5; ++i) {
    expected = 3.4445 * expected - 4.7750 * expected.pow(3) + 2.0315 * expected.pow(5);
    const at::Tensor got = u.t().matmul(orthogonalized(matrix, i + 1).to(at::kDouble)).matmul(vh.t()).diagonal();
    EXPECT_TRUE(at::allclose(got, expected, 1e-4, 1e-5)) << "after " << i + 1;
  }
}

TEST(Orthogonalized, InBf16IsNearIt) {
  at::manual_seed(3);
  for (const auto& [rows, columns] : kShapes) {
    const at::Tensor matrix = at::randn({rows, columns}) * 1e-3, exact = orthogonalized(matrix, 5);
    const at::Tensor rounded = orthogonalized(matrix, 5, at::kBFloat16);
    EXPECT_EQ(rounded.scalar_type(), at::kFloat);
    EXPECT_TRUE(rounded.is_contiguous());
    // Each of some ten products in a row rounds to 8 bits.
    EXPECT_LT((rounded - exact).norm().item<float>(), 0.05 * exact.norm().item<float>()) << rows << " x " << columns;
  }
}

TEST(Orthogonalized, OfZerosIsZero) {
  EXPECT_TRUE(at::equal(orthogonalized(at::zeros({8, 12}), 5), at::zeros({8, 12})));
}

TEST(Orthogonalized, OfAMatrixAndItsTransposeAreTransposes) {
  at::manual_seed(2);
  const at::Tensor matrix = at::randn({20, 50});
  EXPECT_TRUE(at::allclose(orthogonalized(matrix, 5).t(), orthogonalized(matrix.t().contiguous(), 5), 1e-4, 1e-6));
}

/// torch.optim.Muon's step, in the type of `p`.
void plain_step(at::Tensor& p, const at::Tensor& gradient, at::Tensor& momentum, const MuonOptions& o, double lr,
                double decay) {
  momentum = o.momentum * momentum + (1 - o.momentum) * gradient;
  const at::Tensor direction =
      o.nesterov == Nesterov::yes ? (1 - o.momentum) * gradient + o.momentum * momentum : momentum;
  const auto rows = static_cast<double>(p.size(0)), columns = static_cast<double>(p.size(1));
  const double ratio = o.scale == MuonScale::original ? std::sqrt(std::max(1.0, rows / columns))
                                                      : 0.2 * std::sqrt(std::max(rows, columns));
  p = p * (1 - lr * decay) - lr * ratio * orthogonalized(direction.contiguous(), o.iterations);
}

TEST(MuonRule, StepsAsTorchs) {
  at::manual_seed(3);
  constexpr Hyperparameters kValues{.lr = 0.02, .weight_decay = 0.1};
  for (const auto& [rows, columns] : kShapes) {
    for (const auto nesterov : {Nesterov::no, Nesterov::yes}) {
      for (const auto scale : {MuonScale::original, MuonScale::match_adamw}) {
        const MuonOptions options{.nesterov = nesterov, .scale = scale, .products = at::kFloat};
        const MuonRule rule(options);
        at::Tensor expected = at::randn({rows, columns}), momentum = at::zeros({rows, columns});
        UpdatePiece piece{expected.clone().view(-1), {}, {at::zeros({rows * columns})}};
        for (int64_t step = 1; step <= 3; ++step) {
          const at::Tensor gradient = at::randn({rows, columns});
          plain_step(expected, gradient * 0.25, momentum, options, kValues.lr * 0.5, kValues.weight_decay);
          const UpdateTime time{step, 0.5, 0.25};
          piece.gradient = gradient.view(-1);
          const at::Tensor direction = rule.direction(piece, time).view({rows, columns});
          rule.update_matrix(piece, rule.orthogonal(direction).view(-1), rows, columns, kValues, time);
        }
        EXPECT_TRUE(at::allclose(piece.parameter, expected.view(-1), 1e-4, 1e-5)) << rows << " x " << columns;
        EXPECT_TRUE(at::allclose(piece.state[0], momentum.view(-1), 1e-5, 1e-6));
      }
    }
  }
}

TEST(MuonRule, KeepsAMomentumAndAMaster) {
  const MuonRule rule({});
  const auto of_fp32 = rule.state({.elements = 7});
  ASSERT_EQ(of_fp32.size(), 1U);
  EXPECT_EQ(of_fp32[0].name, "momentum_buffer");
  const auto of_bf16 = rule.state({.elements = 7, .type = at::kBFloat16, .master = Master::split});
  ASSERT_EQ(of_bf16.size(), 2U);
  EXPECT_EQ(of_bf16[1].name, "remainder");
}

TEST(MuonOptions, AreValidated) {
  expect_config_error([] { MuonRule({.momentum = 1.0}); }, {"optimizer.momentum", "try 0.95"});
  expect_config_error([] { MuonRule({.iterations = 0}); }, {"muon.iterations", "try 5"});
  expect_config_error([] { MuonRule({.products = at::kHalf}); }, {"muon.products", "Half", "try bf16"});
  expect_config_error([] { muon_products("fp16"); }, {"optimizer.products", "'fp16'", "try auto"});
}

}  // namespace
}  // namespace sherd
