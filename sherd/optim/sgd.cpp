#include "sherd/optim/sgd.h"

#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>

#include "sherd/kernels/sgd.h"

namespace sherd {

std::vector<StateTensor> SgdRule::moments(const PieceShape& shape) const {
  if (momentum_ == 0) return {};
  return {{"momentum_buffer", at::kFloat, shape.elements}};
}

void SgdRule::run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const {
  const kernels::SgdScalars s{h.lr * time.lr_scale, momentum_, h.weight_decay, time.gradient_scale};
  if (momentum_ == 0) return kernels::sgd(s, range.count, range.gradient, range.weights);
  const auto kernel = nesterov_ == Nesterov::yes ? kernels::sgd_nesterov : kernels::sgd_momentum;
  kernel(s, range.count, range.gradient, range.weights, range.state[0].mutable_data_ptr<float>() + range.begin);
}

void SgdRule::run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  at::Tensor parameter = piece.parameter;
  at::Tensor direction = at::mul(piece.gradient, time.gradient_scale).add_(parameter, h.weight_decay);
  if (momentum_ != 0) {
    at::Tensor buffer = piece.state[0];
    buffer.mul_(momentum_).add_(direction);
    direction = nesterov_ == Nesterov::yes ? direction.add_(buffer, momentum_) : buffer;
  }
  parameter.add_(direction, -h.lr * time.lr_scale);
}

}  // namespace sherd
