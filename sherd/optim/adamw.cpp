#include "sherd/optim/adamw.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sqrt.h>

#include <cmath>

#include "sherd/base/error.h"
#include "sherd/kernels/adamw.h"

namespace sherd {
namespace {

kernels::AdamWScalars scalars_of(const Hyperparameters& h, int64_t step, double lr_scale, double gradient_scale) {
  SHERD_CHECK(step >= 1);
  return {.lr = h.lr * lr_scale,
          .beta1 = h.beta1,
          .beta2 = h.beta2,
          .eps = h.eps,
          .weight_decay = h.weight_decay,
          .bias_correction1 = 1.0 - std::pow(h.beta1, static_cast<double>(step)),
          .bias_correction2_sqrt = std::sqrt(1.0 - std::pow(h.beta2, static_cast<double>(step))),
          .gradient_scale = gradient_scale};
}

void check_piece(const AdamWPiece& piece) {
  for (const at::Tensor* tensor : {&piece.parameter, &piece.gradient, &piece.m, &piece.v}) {
    SHERD_CHECK(tensor->defined() && tensor->dim() == 1 && tensor->is_contiguous());
    SHERD_CHECK(tensor->scalar_type() == at::kFloat);
    SHERD_CHECK(tensor->numel() == piece.parameter.numel());
    SHERD_CHECK(tensor->device() == piece.parameter.device());
  }
}

}  // namespace

void adamw_update(const AdamWPiece& piece, const Hyperparameters& h, int64_t step, double lr_scale,
                  double gradient_scale) {
  if (!piece.parameter.is_cpu()) return adamw_update_aten(piece, h, step, lr_scale, gradient_scale);
  check_piece(piece);
  kernels::adamw(scalars_of(h, step, lr_scale, gradient_scale), piece.parameter.numel(),
                 piece.gradient.const_data_ptr<float>(), piece.parameter.mutable_data_ptr<float>(),
                 piece.m.mutable_data_ptr<float>(), piece.v.mutable_data_ptr<float>());
}

void adamw_update_aten(const AdamWPiece& piece, const Hyperparameters& h, int64_t step, double lr_scale,
                       double gradient_scale) {
  check_piece(piece);
  const kernels::AdamWScalars s = scalars_of(h, step, lr_scale, gradient_scale);
  const at::NoGradGuard no_grad;
  const at::Tensor g = at::mul(piece.gradient, s.gradient_scale);
  piece.parameter.mul_(1.0 - s.lr * s.weight_decay);
  piece.m.lerp_(g, 1.0 - s.beta1);
  piece.v.mul_(s.beta2).addcmul_(g, g, 1.0 - s.beta2);
  const at::Tensor denominator = at::sqrt(piece.v).div_(s.bias_correction2_sqrt).add_(s.eps);
  piece.parameter.addcdiv_(piece.m, denominator, -s.lr / s.bias_correction1);
}

}  // namespace sherd
