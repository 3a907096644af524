// Whether tensors hold what is no number: looked for in what units return, so that a loss that went astray has a name.
#pragma once

#include <ATen/core/Tensor.h>

namespace sherd {

/// False if any value is infinite or NaN. True for what is cheap not to know: tensors that are not dense fp32, bf16 or
/// fp16 on the CPU. A pass over the values at the speed of memory, a thousandth of what a unit computes with them.
bool is_finite(const at::Tensor& values);

}  // namespace sherd
