#include "sherd/models/linear.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor as_matrix(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

struct Linears : torch::autograd::Function<Linears> {
  /// parameters: the `count` weights, then as many biases or none.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, at::TensorList parameters, size_t count) {
    const auto rows = as_matrix(x);
    const bool biased = parameters.size() > count;
    variable_list saved{x}, outputs;
    auto sizes = x.sizes().vec();
    for (size_t k = 0; k < count; ++k) {
      const auto& weight = parameters[k];
      const auto y = biased ? at::addmm(parameters[count + k], rows, weight.t()) : at::mm(rows, weight.t());
      sizes.back() = weight.size(0);
      outputs.push_back(at::_unsafe_view(y, sizes));  // No view to autograd, so that it may be written in place.
      saved.push_back(weight);
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["biased"] = biased;
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto rows = as_matrix(saved[0]);
    const size_t count = gradients.size();
    const bool biased = ctx->saved_data["biased"].toBool();
    variable_list result(1 + count * (biased ? 2 : 1) + 1);
    at::Tensor dx;
    for (size_t k = 0; k < count; ++k) {
      const auto dy = as_matrix(gradients[k]);
      const auto& weight = saved[1 + k];
      if (ctx->needs_input_grad(0)) dx = dx.defined() ? dx.addmm_(dy, weight) : at::mm(dy, weight);
      if (ctx->needs_input_grad(1 + k)) result[1 + k] = at::mm(dy.t(), rows);
      if (biased && ctx->needs_input_grad(1 + count + k)) result[1 + count + k] = dy.sum(0);
    }
    if (dx.defined()) result[0] = dx.view(saved[0].sizes());
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> linears(const at::Tensor& x, std::initializer_list<LinearWeights> weights) {
  std::vector<at::Tensor> parameters;
  for (const auto& each : weights) parameters.push_back(each.weight);
  for (const auto& each : weights) {
    if (each.bias.defined()) parameters.push_back(each.bias);
  }
  SHERD_CHECK(parameters.size() == weights.size() || parameters.size() == 2 * weights.size());
  return Linears::apply(x, at::TensorList(parameters), weights.size());
}

at::Tensor linear(const at::Tensor& x, const LinearWeights& weights) { return linears(x, {weights})[0]; }

}  // namespace sherd
