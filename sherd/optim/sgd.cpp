#include "sherd/optim/sgd.h"

#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>

#include "sherd/kernels/sgd.h"

namespace sherd {
namespace {

constexpr std::array<std::string_view, 1> kSgdStates = {"momentum_buffer"};

}  // namespace

std::span<const std::string_view> SgdRule::state_names() const {
  return std::span(kSgdStates).first(momentum_ == 0 ? 0 : 1);
}

void SgdRule::run_kernel(const Spans& spans, const Hyperparameters& h, const UpdateTime& time) const {
  const kernels::SgdScalars s{h.lr * time.lr_scale, momentum_, h.weight_decay, time.gradient_scale};
  if (momentum_ == 0) return kernels::sgd(s, spans.n, spans.gradient, spans.parameter);
  const auto kernel = nesterov_ == Nesterov::yes ? kernels::sgd_nesterov : kernels::sgd_momentum;
  kernel(s, spans.n, spans.gradient, spans.parameter, spans.state[0]);
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
