// A small model of units and a root with parameters of its own, and the same model without units to compare with.
#pragma once

#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sherd/base/parameter_source.h"
#include "sherd/shard/unit.h"

namespace sherd::testing {

/// norm -> linear -> gelu -> linear, added to its input. `unused` never gets a gradient.
struct BlockImpl : torch::nn::Module {
  BlockImpl(int64_t width, int64_t hidden) {
    norm = register_parameter("norm", at::ones({width}));
    bias = register_parameter("bias", at::zeros({width}));
    up = register_parameter("up", 0.3 * at::randn({hidden, width}));
    down = register_parameter("down", 0.3 * at::randn({width, hidden}));
    unused = register_parameter("unused", at::ones({3}));
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor normed = at::layer_norm(x, {x.size(-1)}, norm, bias);
    return x + at::linear(at::gelu(at::linear(normed, up)), down);
  }
  at::Tensor norm, bias, up, down, unused;
};

/// Writes into its input, and returns a view that the model then writes into.
struct InPlaceBlockImpl : BlockImpl {
  using BlockImpl::BlockImpl;
  at::Tensor forward(const at::Tensor& x) {
    at::Tensor(x).mul_(0.5);
    return BlockImpl::forward(x).view({-1, x.size(-1)});
  }
};

/// `entry` and `tied` belong to the root; `tied` is used twice.
template <class Block>
struct ModelImpl : torch::nn::Module {
  explicit ModelImpl(int64_t width = 6, int64_t hidden = 10, int64_t count = 3) {
    entry = register_parameter("entry", at::randn({width, width}));
    tied = register_parameter("tied", at::randn({width, width}));
    for (int64_t i = 0; i < count; ++i)
      blocks.push_back(register_module("block" + std::to_string(i), std::make_shared<Block>(width, hidden)));
  }
  at::Tensor forward(const at::Tensor& input) {
    at::Tensor x = at::linear(at::linear(input, tied), entry);
    for (const auto& block : blocks) x = block->forward(x);
    return at::linear(x, tied);
  }
  at::Tensor entry, tied;
  std::vector<std::shared_ptr<Block>> blocks;
};

using Values = std::map<std::string, at::Tensor>;

/// Copies of all parameters by name.
inline Values values_of(torch::nn::Module& module) {
  Values values;
  for (const auto& item : module.named_parameters()) values[item.key()] = item.value().detach().clone();
  return values;
}

/// A source that hands out rows of `values`.
inline ParameterSource source_of(Values values) {
  return [values = std::move(values)](const RowRange& range, float* out) {
    const at::Tensor flat = values.at(range.fqn).view(-1);
    std::memcpy(out, flat.const_data_ptr<float>() + range.first_row * range.row_elements,
                static_cast<size_t>(range.rows * range.row_elements) * sizeof(float));
  };
}

/// Gives a plain model the same values.
inline void load(torch::nn::Module& module, const Values& values) {
  const at::NoGradGuard no_grad;
  for (const auto& item : module.named_parameters()) item.value().copy_(values.at(item.key()));
}

}  // namespace sherd::testing
