// Parameters without memory: a model is built as names and shapes, and gets its values later.
//
// A deferred parameter is an ordinary leaf with sizes, strides and a storage of the right size that points nowhere
// and is armed: reading or writing it throws an error that says what to do. Sharding re-points the storage of the
// same tensor; materialize() gives plain memory. So a 7B model is built at no cost in memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include "sherd/base/parameter_source.h"

namespace sherd {

/// A tensor without memory, armed.
at::Tensor deferred_tensor(at::IntArrayRef sizes, const at::TensorOptions& options);

/// An fp32 leaf of `device` that requires grad and has no memory.
at::Tensor deferred_parameter(at::IntArrayRef sizes, at::Device device = at::kCPU);

/// Gives each parameter of `module` (a tied one once) memory of its own, 64-byte aligned and owned by its storage, and
/// fills it from `source`. The tensors stay the same objects. For models on one process: tests, sampling, comparison.
/// Throws what `source` throws; the parameters filled so far keep their memory.
void materialize(torch::nn::Module& module, const ParameterSource& source);

/// How `source` is asked for all of a parameter of these sizes.
RowRange whole_parameter(std::string fqn, at::IntArrayRef sizes);

}  // namespace sherd
