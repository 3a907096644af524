#include "sherd/optim/adamw.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

namespace sherd {
namespace {

constexpr Hyperparameters kValues{.lr = 2e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};

AdamWPiece make_piece(int64_t n) {
  const at::Tensor parameter = at::randn({n});
  return {parameter, at::randn({n}), at::zeros({n}), at::zeros({n})};
}

AdamWPiece clone(const AdamWPiece& piece) {
  return {piece.parameter.clone(), piece.gradient.clone(), piece.m.clone(), piece.v.clone()};
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == 0 ? 0.0 : (a - b).abs().max().item<double>();
}

// Ten steps with changing gradients. m and v have gradients of about 1, a step moves a parameter by about lr.
void expect_close(const AdamWPiece& a, const AdamWPiece& b) {
  EXPECT_LE(max_difference(a.parameter, b.parameter), 3e-6);  // 10 roundings of |p| < 5
  EXPECT_LE(max_difference(a.m, b.m), 2e-6);
  EXPECT_LE(max_difference(a.v, b.v), 4e-6);
}

TEST(AdamWUpdate, KernelAtenAndTorchFusedAgree) {
  for (const int64_t n : {0, 1, 3, 7, 15, 16, 17, 31, 33, 1000, 4097}) {
    AdamWPiece kernel = make_piece(n), aten = clone(kernel), fused = clone(kernel);
    const at::Tensor step = at::zeros({});
    for (int64_t k = 1; k <= 10; ++k) {
      const at::Tensor gradient = at::randn({n});
      const double lr_scale = 0.1 * static_cast<double>(k), gradient_scale = 0.4;
      kernel.gradient = aten.gradient = gradient;
      adamw_update(kernel, kValues, k, lr_scale, gradient_scale);
      adamw_update_aten(aten, kValues, k, lr_scale, gradient_scale);
      step.fill_(static_cast<double>(k));
      if (n > 0) {
        at::_fused_adamw_({fused.parameter}, {at::mul(gradient, gradient_scale)}, {fused.m}, {fused.v}, {}, {step},
                          kValues.lr * lr_scale, kValues.beta1, kValues.beta2, kValues.weight_decay, kValues.eps, false,
                          false);
      }
    }
    expect_close(kernel, aten);
    expect_close(kernel, fused);
  }
}

TEST(AdamWUpdate, PiecesGiveTheBitsOfTheWhole) {
  const int64_t n = 1003;
  AdamWPiece whole = make_piece(n), cut = clone(whole);
  adamw_update(whole, kValues, 1, 1.0, 1.0);
  int64_t begin = 0;
  for (const int64_t end : std::vector<int64_t>{0, 1, 334, 668, n}) {
    const auto part = [&](const at::Tensor& tensor) { return tensor.narrow(0, begin, end - begin); };
    adamw_update({part(cut.parameter), part(cut.gradient), part(cut.m), part(cut.v)}, kValues, 1, 1.0, 1.0);
    begin = end;
  }
  EXPECT_TRUE(at::equal(whole.parameter, cut.parameter));
  EXPECT_TRUE(at::equal(whole.m, cut.m));
  EXPECT_TRUE(at::equal(whole.v, cut.v));
}

TEST(AdamWUpdate, LeavesTheGradientAlone) {
  for (const auto update : {adamw_update, adamw_update_aten}) {
    const AdamWPiece piece = make_piece(100);
    const at::Tensor before = piece.gradient.clone();
    update(piece, kValues, 1, 1.0, 0.5);
    EXPECT_TRUE(at::equal(piece.gradient, before));
  }
}

TEST(AdamWUpdate, WorksOnLeavesThatRequireGrad) {
  for (const auto update : {adamw_update, adamw_update_aten}) {
    AdamWPiece piece = make_piece(100);
    const at::Tensor before = piece.parameter.clone();
    piece.parameter.requires_grad_();
    update(piece, kValues, 1, 1.0, 1.0);
    EXPECT_GT(max_difference(piece.parameter.detach(), before), 1e-3);
    EXPECT_TRUE(piece.parameter.is_leaf());
  }
}

TEST(AdamWUpdate, PiecesOfTheWrongFormAreBrokenInvariants) {
  for (const auto update : {adamw_update, adamw_update_aten}) {
    const auto expect_refused = [&](const AdamWPiece& piece) {
      EXPECT_THROW(update(piece, kValues, 1, 1.0, 1.0), std::logic_error);
    };
    const AdamWPiece good = make_piece(8);
    EXPECT_NO_THROW(update(good, kValues, 1, 1.0, 1.0));
    EXPECT_THROW(update(good, kValues, 0, 1.0, 1.0), std::logic_error);  // steps count from 1
    expect_refused({good.parameter, at::zeros({7}), good.m, good.v});
    expect_refused({good.parameter, at::Tensor(), good.m, good.v});
    expect_refused({good.parameter, at::zeros({8}, at::kDouble), good.m, good.v});
    expect_refused({good.parameter, at::zeros({16}).slice(0, 0, 16, 2), good.m, good.v});
    expect_refused({at::zeros({2, 4}), at::zeros({2, 4}), at::zeros({2, 4}), at::zeros({2, 4})});
  }
}

}  // namespace
}  // namespace sherd
