#include "sherd/optim/muon.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/lerp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>

#include <algorithm>
#include <cmath>

#include "sherd/base/error.h"
#include "sherd/kernels/sgd.h"
#include "sherd/optim/native_products.h"

namespace sherd {
namespace {

constexpr double kEps = 1e-7;
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;

double lr_ratio(MuonScale scale, int64_t rows, int64_t columns) {
  const auto r = static_cast<double>(rows), c = static_cast<double>(columns);
  return scale == MuonScale::original ? std::sqrt(std::max(1.0, r / c)) : 0.2 * std::sqrt(std::max(r, c));
}

}  // namespace

void MuonOptions::validate() const {
  if (!(momentum >= 0.0 && momentum < 1.0))
    config_error("optimizer.momentum", "got {}, expected 0 <= momentum < 1; try 0.95", momentum);
  if (iterations < 1 || iterations > 20) config_error("muon.iterations", "got {}, expected 1 to 20; try 5", iterations);
  if (products && *products != at::kFloat && *products != at::kBFloat16)
    config_error("muon.products", "got {}, expected fp32 or bf16; try bf16", c10::toString(*products));
}

std::optional<at::ScalarType> muon_products(std::string_view name) {
  return named(kMuonProductNames, name, "optimizer.products", "auto");
}

MuonRule::MuonRule(const MuonOptions& options) : options_(options) { options_.validate(); }

std::vector<StateTensor> MuonRule::moments(const PieceShape& shape) const {
  return {{"momentum_buffer", at::kFloat, shape.elements}};
}

at::Tensor orthogonalized(const at::Tensor& matrix, int64_t iterations, at::ScalarType products) {
  const at::NoGradGuard no_grad;
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = tall ? matrix.t() : matrix;
  x = (x / std::max(matrix.norm().item<double>(), kEps)).to(products);
  for (int64_t i = 0; i < iterations; ++i) {
    const at::Tensor gram = at::mm(x, x.t());
    x = at::addmm(x, at::addmm(gram, gram, gram, kB, kC), x, kA);
  }
  return (tall ? x.t() : x).to(at::kFloat).contiguous();
}

at::Tensor MuonRule::orthogonal(const at::Tensor& direction) const {
  const bool fast = has_native_products(at::kBFloat16, direction.device());
  return orthogonalized(direction, options_.iterations, options_.products.value_or(fast ? at::kBFloat16 : at::kFloat));
}

at::Tensor MuonRule::direction(const UpdatePiece& piece, const UpdateTime& time) const {
  const at::NoGradGuard no_grad;
  const at::Tensor gradient = at::mul(piece.gradient.to(at::kFloat), time.gradient_scale);
  const at::Tensor momentum = piece.state[0];
  momentum.lerp_(gradient, 1 - options_.momentum);
  return options_.nesterov == Nesterov::yes ? at::lerp(gradient, momentum, options_.momentum) : momentum.clone();
}

// SGD's step with a learning rate of the matrix's own; its decay counts times that rate, so it is divided by it first.
void MuonRule::update_matrix(UpdatePiece piece, const at::Tensor& orthogonal_rows, int64_t rows, int64_t columns,
                             const Hyperparameters& h, const UpdateTime& time) const {
  const double ratio = lr_ratio(options_.scale, rows, columns);
  Hyperparameters own = h;
  own.lr = h.lr * ratio;
  own.weight_decay = h.weight_decay / ratio;
  piece.gradient = orthogonal_rows;
  update(piece, own, {time.step, time.lr_scale, 1.0});
}

void MuonRule::run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const {
  kernels::sgd({h.lr * time.lr_scale, 0.0, h.weight_decay, 1.0}, range.count, range.gradient, range.weights);
}

void MuonRule::run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  at::Tensor parameter = piece.parameter;
  parameter.sub_(at::mul(parameter, h.weight_decay).add_(piece.gradient), h.lr * time.lr_scale);
}

}  // namespace sherd
