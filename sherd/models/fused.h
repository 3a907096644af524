// The parts of a block between and around its matrix products, each one pass over memory forward and one backward.
//
// On contiguous fp32 tensors of the CPU they are sherd's kernels, spread over the threads in pieces that do not depend
// on their number, so neither do the bits; these have no second derivatives (an error says so). Anything else takes
// torch's operators. Saved for backward: the inputs, of the norm also one value a row.
#pragma once

#include <ATen/core/Tensor.h>

namespace sherd {

/// weight * x / sqrt(mean(x^2) + eps), over the last dim.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// silu(gate) * up, both of one shape.
at::Tensor silu_product(const at::Tensor& gate, const at::Tensor& up);

/// Rotary embedding of x [batch, time, heads * head_dim] by rope [2, positions, head_dim / 2] (cosines, sines), where
/// positions >= time: element i of a head is paired with i + head_dim / 2, as Hugging Face does.
/// Writes into x where it can: use the result.
at::Tensor rotate_halves(at::Tensor x, const at::Tensor& rope);

}  // namespace sherd
