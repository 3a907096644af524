#include "sherd/optim/adam.h"

#include <ATen/ops/mul.h>
#include <ATen/ops/sqrt.h>

#include <cmath>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/kernels/adamw.h"

namespace sherd {
namespace {

kernels::AdamWScalars adam_scalars(const Hyperparameters& h, const UpdateTime& time, AdamRule::Decay decay) {
  const auto step = static_cast<double>(time.step);
  const bool decoupled = decay == AdamRule::Decay::decoupled;
  return {.lr = h.lr * time.lr_scale,
          .beta1 = h.beta1,
          .beta2 = h.beta2,
          .eps = h.eps,
          .weight_decay = decoupled ? h.weight_decay : 0.0,
          .l2 = decoupled ? 0.0 : h.weight_decay,
          .bias_correction1 = 1.0 - std::pow(h.beta1, step),
          .bias_correction2_sqrt = std::sqrt(1.0 - std::pow(h.beta2, step)),
          .gradient_scale = time.gradient_scale};
}

kernels::Moments moments_of(std::span<const at::Tensor> state) {
  const auto floats = [&](size_t k) { return state[k].mutable_data_ptr<float>(); };
  const auto codes = [&](size_t k) { return state[k].mutable_data_ptr<uint8_t>(); };
  if (state[0].scalar_type() == at::kFloat) return kernels::Fp32Moments{floats(0), floats(1)};
  return kernels::MapMoments{codes(0), codes(1), floats(2), floats(3)};
}

}  // namespace

std::vector<StateTensor> AdamRule::moments(const PieceShape& shape) const {
  const int64_t n = shape.elements;
  if (shape.moments == MomentType::fp32) return {{"exp_avg", at::kFloat, n}, {"exp_avg_sq", at::kFloat, n}};
  const int64_t blocks = ceil_div(n, kMomentBlock);
  return {{"state1", at::kByte, n},
          {"state2", at::kByte, n},
          {"absmax1", at::kFloat, blocks, MemoryKind::moments, StateTensor::Per::block},
          {"absmax2", at::kFloat, blocks, MemoryKind::moments, StateTensor::Per::block}};
}

void AdamRule::run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const {
  kernels::adamw(adam_scalars(h, time, decay_), range.count, range.gradient, range.weights,
                 kernels::from(moments_of(range.state), range.begin));
}

void AdamRule::run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  SHERD_CHECK(piece.state[0].scalar_type() == at::kFloat);
  const kernels::AdamWScalars s = adam_scalars(h, time, decay_);
  at::Tensor g = at::mul(piece.gradient, s.gradient_scale);
  at::Tensor parameter = piece.parameter, m = piece.state[0], v = piece.state[1];
  if (decay_ == Decay::decoupled) {
    parameter.mul_(1.0 - s.lr * s.weight_decay);
  } else {
    g.add_(parameter, s.l2);
  }
  m.lerp_(g, 1.0 - s.beta1);
  v.mul_(s.beta2).addcmul_(g, g, 1.0 - s.beta2);
  const at::Tensor denominator = at::sqrt(v).div_(s.bias_correction2_sqrt).add_(s.eps);
  parameter.addcdiv_(m, denominator, -s.lr / s.bias_correction1);
}

}  // namespace sherd
