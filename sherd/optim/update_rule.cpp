#include "sherd/optim/update_rule.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/kernels/dynamic_map.h"
#include "sherd/kernels/parallel.h"

namespace sherd {
namespace {

static_assert(kMomentBlock == kernels::kMapBlock);
constexpr int64_t kBlocksAtLeast = 128;  // of a thread: 0.9 MB of traffic; waking one costs a tenth of that

template <class Half>
Half* halves(const at::Tensor& tensor) {
  return static_cast<Half*>(tensor.mutable_data_ptr());
}

kernels::Weights weights_of(const UpdatePiece& piece, int64_t step) {
  const at::Tensor& parameter = piece.parameter;
  if (parameter.scalar_type() == at::kFloat) return kernels::Fp32Weights{parameter.mutable_data_ptr<float>()};
  switch (piece.master) {
    case Master::split:
      return kernels::SplitWeights{halves<kernels::Bf16>(parameter), piece.state.back().mutable_data_ptr<int16_t>()};
    case Master::stochastic:
      return kernels::StochasticWeights{halves<kernels::Bf16>(parameter), piece.first, piece.key,
                                        static_cast<uint32_t>(step)};
    default:
      break;
  }
  float* master = piece.state.back().mutable_data_ptr<float>();
  if (parameter.scalar_type() == at::kHalf)
    return kernels::CopiedWeights<kernels::Fp16>{master, halves<kernels::Fp16>(parameter)};
  return kernels::CopiedWeights<kernels::Bf16>{master, halves<kernels::Bf16>(parameter)};
}

bool is_rounded(const UpdatePiece& piece) {
  return piece.parameter.scalar_type() != at::kFloat && piece.master == Master::nearest;
}

/// The piece in fp32: the master or a copy in the place of the parameter.
UpdatePiece widened(const UpdatePiece& piece) {
  UpdatePiece wide = piece;
  wide.parameter = values_of(piece);
  wide.gradient = piece.gradient.to(at::kFloat);
  if (piece.parameter.scalar_type() != at::kFloat && piece.master == Master::fp32) wide.state.pop_back();
  wide.master = Master::nearest;
  return wide;
}

}  // namespace

kernels::Gradient gradient_of(const at::Tensor& gradient) {
  const void* data = gradient.const_data_ptr();
  if (gradient.scalar_type() == at::kBFloat16) return static_cast<const kernels::Bf16*>(data);
  if (gradient.scalar_type() == at::kHalf) return static_cast<const kernels::Fp16*>(data);
  return static_cast<const float*>(data);
}

bool fits_eight_bits(int64_t rows, int64_t row_elements, int ranks) {
  const int64_t elements = rows * row_elements;
  if (elements < kLeast8BitElements) return false;
  if (ranks == 1 || row_elements % kMomentBlock == 0) return true;
  const int64_t of_rank = ceil_div(rows, ranks) * row_elements;
  return of_rank % kMomentBlock == 0 && ceil_div(ceil_div(elements, kMomentBlock), ranks) == of_rank / kMomentBlock;
}

std::string_view name_of(Master master) { return text_of(kMasterNames, master); }

Master master_named(std::string_view name) {
  if (const auto master = find_named(kMasterNames, name)) return *master;
  config_error("optim", "got master='{}', expected {}; try 'split'", name, alternatives(texts_of(kMasterNames)));
}

std::vector<StateTensor> UpdateRule::state(const PieceShape& shape) const {
  std::vector<StateTensor> all = moments(shape);
  if (shape.type == at::kFloat) return all;
  if (shape.master == Master::fp32) all.push_back({"master", at::kFloat, shape.elements, MemoryKind::master});
  if (shape.master == Master::split) all.push_back({"remainder", at::kShort, shape.elements, MemoryKind::master});
  return all;
}

void UpdateRule::check(const UpdatePiece& piece, const UpdateTime& time) const {
  SHERD_CHECK(piece.parameter.defined() && piece.gradient.defined());
  const at::ScalarType type = piece.parameter.scalar_type(), gradient = piece.gradient.scalar_type();
  const bool bf16_only = piece.master == Master::split || piece.master == Master::stochastic;
  SHERD_CHECK(time.step >= 1);
  SHERD_CHECK(type == at::kFloat || type == at::kBFloat16 || (type == at::kHalf && !bf16_only));
  SHERD_CHECK(gradient == at::kFloat || gradient == at::kBFloat16 || gradient == at::kHalf);
  const auto check_tensor = [&](const at::Tensor& tensor, int64_t elements) {
    SHERD_CHECK(tensor.defined() && tensor.dim() == 1 && tensor.is_contiguous());
    SHERD_CHECK(tensor.numel() == elements && tensor.device() == piece.parameter.device());
  };
  const int64_t n = piece.parameter.numel();
  check_tensor(piece.parameter, n);
  check_tensor(piece.gradient, n);
  const bool eight_bits = !piece.state.empty() && piece.state[0].scalar_type() == at::kByte;
  const auto expected = state({n, type, eight_bits ? MomentType::eight_bits : MomentType::fp32, piece.master});
  SHERD_CHECK(piece.state.size() == expected.size());
  for (size_t k = 0; k < expected.size(); ++k) {
    check_tensor(piece.state[k], expected[k].elements);
    SHERD_CHECK(piece.state[k].scalar_type() == expected[k].type);
  }
}

void UpdateRule::update(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  if (piece.parameter.defined() && !piece.parameter.is_cpu()) return update_by_aten(piece, h, time);
  check(piece, time);
  if (is_rounded(piece)) {
    const UpdatePiece wide = widened(piece);
    update(wide, h, time);
    piece.parameter.copy_(wide.parameter);
    return;
  }
  const int64_t n = piece.parameter.numel();
  const kernels::Gradient gradient = gradient_of(piece.gradient);
  const kernels::Weights weights = weights_of(piece, time.step);
  kernels::parallel_ranges(ceil_div(n, kMomentBlock), kBlocksAtLeast, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kMomentBlock, end = std::min(n, last * kMomentBlock);
    run_kernel({begin, end - begin, kernels::from(gradient, begin), kernels::from(weights, begin), piece.state}, h,
               time);
  });
}

void UpdateRule::update_by_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  check(piece, time);
  const at::NoGradGuard no_grad;
  if (piece.parameter.scalar_type() == at::kFloat && piece.gradient.scalar_type() == at::kFloat)
    return run_aten(piece, h, time);
  const UpdatePiece wide = widened(piece);
  run_aten(wide, h, time);
  if (!wide.parameter.is_same(piece.parameter)) piece.parameter.copy_(wide.parameter);
}

void set_values(const UpdatePiece& piece, const at::Tensor& values) {
  if (values.const_data_ptr() == piece.parameter.const_data_ptr()) return;
  if (is_rounded(piece) || !piece.parameter.is_cpu()) {
    piece.parameter.copy_(values);
    if (piece.master == Master::fp32 && piece.parameter.scalar_type() != at::kFloat) piece.state.back().copy_(values);
    return;
  }
  kernels::store_weights(weights_of(piece, 0), values.numel(), values.const_data_ptr<float>());
}

at::Tensor values_of(const UpdatePiece& piece) {
  if (piece.parameter.scalar_type() == at::kFloat) return piece.parameter;
  if (piece.master == Master::fp32) return piece.state.back();
  if (is_rounded(piece) || !piece.parameter.is_cpu()) return piece.parameter.to(at::kFloat);
  const at::Tensor values = at::empty({piece.parameter.numel()}, at::kFloat);
  kernels::load_weights(weights_of(piece, 0), values.numel(), values.mutable_data_ptr<float>());
  return values;
}

}  // namespace sherd
