// The element-wise parts of a Llama block.
#pragma once

#include <ATen/core/Tensor.h>

namespace sherd {

/// weight * x / sqrt(mean(x^2) + eps), over the last dim.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// silu(gate) * up, both of one shape.
at::Tensor silu_product(const at::Tensor& gate, const at::Tensor& up);

/// Rotary embedding of x [batch, time, heads, head_dim] by rope [2, time, head_dim / 2] (cosines, sines):
/// element i is paired with i + head_dim / 2, as Hugging Face does.
at::Tensor rotate_halves(const at::Tensor& x, const at::Tensor& rope);

}  // namespace sherd
