#include "sherd/optim/adam.h"

#include <ATen/ops/mul.h>
#include <ATen/ops/sqrt.h>

#include <cmath>

#include "sherd/kernels/adamw.h"

namespace sherd {
namespace {

constexpr std::array<std::string_view, 2> kAdamStates = {"exp_avg", "exp_avg_sq"};

kernels::AdamWScalars adam_scalars(const Hyperparameters& h, const UpdateTime& time) {
  const auto step = static_cast<double>(time.step);
  return {.lr = h.lr * time.lr_scale,
          .beta1 = h.beta1,
          .beta2 = h.beta2,
          .eps = h.eps,
          .weight_decay = h.weight_decay,
          .bias_correction1 = 1.0 - std::pow(h.beta1, step),
          .bias_correction2_sqrt = std::sqrt(1.0 - std::pow(h.beta2, step)),
          .gradient_scale = time.gradient_scale};
}

}  // namespace

std::span<const std::string_view> AdamRule::state_names() const { return kAdamStates; }

void AdamRule::run_kernel(const Spans& spans, const Hyperparameters& h, const UpdateTime& time) const {
  const auto kernel = decay_ == Decay::decoupled ? kernels::adamw : kernels::adam;
  kernel(adam_scalars(h, time), spans.n, spans.gradient, spans.parameter, spans.state[0], spans.state[1]);
}

void AdamRule::run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  const kernels::AdamWScalars s = adam_scalars(h, time);
  at::Tensor g = at::mul(piece.gradient, s.gradient_scale);
  at::Tensor parameter = piece.parameter, m = piece.state[0], v = piece.state[1];
  if (decay_ == Decay::decoupled) {
    parameter.mul_(1.0 - s.lr * s.weight_decay);
  } else {
    g.add_(parameter, s.weight_decay);
  }
  m.lerp_(g, 1.0 - s.beta1);
  v.mul_(s.beta2).addcmul_(g, g, 1.0 - s.beta2);
  const at::Tensor denominator = at::sqrt(v).div_(s.bias_correction2_sqrt).add_(s.eps);
  parameter.addcdiv_(m, denominator, -s.lr / s.bias_correction1);
}

}  // namespace sherd
