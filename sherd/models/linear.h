// Products with weights that share an input.
//
// Why not at::linear several times: the gradients of the input are added up within the products, instead of in passes
// of their own, and the input is saved once.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

namespace sherd {

/// A weight [out, in], and a bias [out] or none (undefined).
struct LinearWeights {
  at::Tensor weight, bias;
};

/// x [..., in] @ weight^T + bias for each, fresh tensors. All have a bias or none has.
std::vector<at::Tensor> linears(const at::Tensor& x, std::initializer_list<LinearWeights> weights);

/// The same with one.
at::Tensor linear(const at::Tensor& x, const LinearWeights& weights);

}  // namespace sherd
