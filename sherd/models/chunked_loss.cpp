#include "sherd/models/chunked_loss.h"

#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros_like.h>

#include <numeric>

#include "sherd/base/error.h"
#include "sherd/kernels/cross_entropy.h"
#include "sherd/kernels/parallel.h"

namespace sherd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLogitsOfThread = 16384;  // at least

// What the forward pass leaves behind; a gradient that is not wanted is undefined. Of 16-bit values they still have to
// be multiplied with the loss's scale: logits' gradients of 1/tokens would be lost in fp16 before backward can scale
// them. Their dweight is a sum in fp32.
struct LossAndGradients {
  double loss = 0.0;
  at::Tensor dx, dweight;
};

void check_targets(const at::Tensor& targets, int64_t vocab) {
  const auto outside = targets.ne(kIgnoredTarget).logical_and_(targets.lt(0).logical_or_(targets.ge(vocab)));
  if (outside.any().item<bool>())
    config_error("loss", "got target {}, expected 0 to {} (the vocabulary) or {}",
                 targets.masked_select(outside)[0].item<int64_t>(), vocab - 1, kIgnoredTarget);
}

enum class Wanted { no, yes };

// The chunk's loss; its logits become their gradient times `scale`, if that is wanted.
double loss_on_cpu(at::Tensor& logits, const at::Tensor& targets, double scale, Wanted want_gradient) {
  const int64_t vocab = logits.size(1), stride = logits.stride(0);
  std::vector<double> losses(static_cast<size_t>(logits.size(0)));
  float* const values = logits.mutable_data_ptr<float>();
  const int64_t* const wanted = targets.const_data_ptr<int64_t>();
  kernels::parallel_ranges(
      logits.size(0), std::max<int64_t>(1, kLogitsOfThread / vocab), [&](int64_t first, int64_t last) {
        const kernels::LogitRows rows{last - first, vocab, stride, wanted + first, kIgnoredTarget};
        if (want_gradient == Wanted::yes) {
          kernels::cross_entropy_gradient(rows, scale, values + first * stride, losses.data() + first);
        } else {
          kernels::cross_entropy(rows, values + first * stride, losses.data() + first);
        }
      });
  return scale * std::accumulate(losses.begin(), losses.end(), 0.0);
}

// The same with torch's operators.
double loss_elsewhere(at::Tensor& logits, const at::Tensor& targets, double scale, Wanted want_gradient) {
  const auto kept = targets.ne(kIgnoredTarget);
  const auto index = targets.clamp_min(0).unsqueeze(1);
  const auto log_softmax = at::_log_softmax(logits, 1, /*half_to_float=*/false);
  const auto losses = log_softmax.gather(1, index).squeeze(1).neg();
  if (want_gradient == Wanted::yes) {
    const auto row_scale = kept.to(logits.scalar_type()).mul_(scale).unsqueeze(1);
    at::exp_out(logits, log_softmax);
    logits.mul_(row_scale);
    logits.scatter_add_(1, index, row_scale.neg());
  }
  return scale * losses.to(at::kDouble).masked_fill_(kept.logical_not(), 0.0).sum().item<double>();
}

LossAndGradients over_chunks(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets, double scale,
                             Wanted want_dx, Wanted want_dweight) {
  LossAndGradients result;
  if (want_dx == Wanted::yes) result.dx = at::empty_like(x, at::MemoryFormat::Contiguous);
  const int64_t tokens = x.size(0), vocab = weight.size(0);
  const int64_t chunk = std::min(loss_chunk_tokens(vocab), std::max<int64_t>(tokens, 1));
  // Rows a power of two apart fall into the same cache sets, which costs the products up to a seventh.
  constexpr int64_t kPadding = 16;
  const bool narrow = x.scalar_type() != at::kFloat;
  const auto all_logits =
      at::empty({chunk, (vocab / kPadding + 2) * kPadding}, x.options().dtype(at::kFloat)).narrow(1, 0, vocab);
  const bool want_gradient = want_dx == Wanted::yes || want_dweight == Wanted::yes;
  const auto transposed = weight.t();
  for (int64_t first = 0; first < tokens; first += chunk) {
    const int64_t count = std::min(chunk, tokens - first);
    const auto rows = x.narrow(0, first, count), target = targets.narrow(0, first, count);
    auto logits = all_logits.narrow(0, 0, count);
    if (narrow) {
      logits.copy_(at::mm(rows, transposed));
    } else {
      at::mm_out(logits, rows, transposed);
    }
    const auto chunk_loss = x.is_cpu() ? loss_on_cpu : loss_elsewhere;
    const double loss = chunk_loss(logits, target, narrow ? 1.0 : scale, want_gradient ? Wanted::yes : Wanted::no);
    result.loss += narrow ? scale * loss : loss;
    // Now the logits are their gradient.
    if (narrow) logits = logits.to(x.scalar_type());
    if (want_dx == Wanted::yes) {
      auto dx = result.dx.narrow(0, first, count);
      at::mm_out(dx, logits, weight);
    }
    if (want_dweight == Wanted::no) continue;
    if (narrow) {
      const auto part = at::mm(logits.t(), rows).to(at::kFloat);
      result.dweight = first == 0 ? part : result.dweight.add_(part);
    } else if (first == 0) {
      result.dweight = at::mm(logits.t(), rows);
    } else {
      result.dweight.addmm_(logits.t(), rows);
    }
  }
  if (want_dweight == Wanted::yes && !result.dweight.defined()) result.dweight = at::zeros_like(weight);
  return result;
}

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& targets, double scale) {
    auto result = over_chunks(x, weight, targets, scale, x.requires_grad() ? Wanted::yes : Wanted::no,
                              weight.requires_grad() ? Wanted::yes : Wanted::no);
    ctx->save_for_backward({result.dx, result.dweight});
    ctx->saved_data["rest_of_scale"] = x.scalar_type() == at::kFloat ? 1.0 : scale;
    ctx->saved_data["type"] = x.scalar_type();
    return at::scalar_tensor(result.loss, x.options().dtype(at::kFloat));
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const auto& gradient = gradients[0];
    const auto factor = gradient * ctx->saved_data["rest_of_scale"].toDouble();
    const bool is_one = factor.is_cpu() && factor.item<double>() == 1.0;
    for (auto& tensor : saved) {
      if (tensor.defined() && !is_one) tensor = tensor * factor;
      if (tensor.defined()) tensor = tensor.to(ctx->saved_data["type"].toScalarType());
    }
    return {saved[0], saved[1], at::Tensor(), at::Tensor()};
  }
};

}  // namespace

int64_t loss_chunk_tokens(int64_t vocab) {
  // Measured at vocabularies of 8192 and 32000: 8 MiB of logits, but enough tokens for the products to be efficient
  // (64 tokens cost 10 to 17 % more than 256, 128 cost 3 to 5 %).
  constexpr int64_t kLogits = int64_t{2} << 20, kLeast = 128;
  return std::max(kLeast, kLogits / vocab);
}

at::Tensor linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                                double scale) {
  SHERD_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1));
  SHERD_CHECK(targets.dim() == 1 && targets.size(0) == x.size(0) && targets.scalar_type() == at::kLong);
  SHERD_CHECK(x.scalar_type() == weight.scalar_type());
  SHERD_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf);
  check_targets(targets, weight.size(0));
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad()))
    return LinearCrossEntropy::apply(x, weight, targets.contiguous(), scale);
  const at::NoGradGuard no_grad;
  return at::scalar_tensor(over_chunks(x, weight, targets.contiguous(), scale, Wanted::no, Wanted::no).loss,
                           x.options().dtype(at::kFloat));
}

}  // namespace sherd
