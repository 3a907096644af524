#include "sherd/optim/lion.h"

#include <ATen/ops/mul.h>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/kernels/lion.h"

namespace sherd {
namespace {

kernels::Momentum momentum_of(std::span<const at::Tensor> state) {
  if (state[0].scalar_type() == at::kFloat) return kernels::Fp32Momentum{state[0].mutable_data_ptr<float>()};
  return kernels::MapMomentum{state[0].mutable_data_ptr<uint8_t>(), state[1].mutable_data_ptr<float>()};
}

}  // namespace

std::vector<StateTensor> LionRule::moments(const PieceShape& shape) const {
  const int64_t n = shape.elements;
  if (shape.moments == MomentType::fp32) return {{"exp_avg", at::kFloat, n}};
  const int64_t blocks = ceil_div(n, kMomentBlock);
  return {{"state1", at::kByte, n}, {"absmax1", at::kFloat, blocks, MemoryKind::moments, StateTensor::Per::block}};
}

void LionRule::run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const {
  kernels::lion({.lr = h.lr * time.lr_scale,
                 .beta1 = h.beta1,
                 .beta2 = h.beta2,
                 .weight_decay = h.weight_decay,
                 .gradient_scale = time.gradient_scale},
                range.count, range.gradient, range.weights, kernels::from(momentum_of(range.state), range.begin));
}

void LionRule::run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  SHERD_CHECK(piece.state[0].scalar_type() == at::kFloat);
  at::Tensor parameter = piece.parameter, m = piece.state[0];
  const double lr = h.lr * time.lr_scale;
  const at::Tensor g = at::mul(piece.gradient, time.gradient_scale);
  const at::Tensor move = at::mul(m, h.beta1).add_(g, 1.0 - h.beta1).sign_();
  parameter.mul_(1.0 - lr * h.weight_decay).sub_(move, lr);
  m.mul_(h.beta2).add_(g, 1.0 - h.beta2);
}

}  // namespace sherd
