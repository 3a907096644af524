// Whether a device multiplies matrices of a type by instructions of its own, or emulates them.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace sherd {

/// CPUs: fp32; bf16 with AVX512-BF16, AMX or Arm's; fp16 with AVX512-FP16 or AMX. Other devices: all.
bool has_native_products(at::ScalarType type, at::Device device);

}  // namespace sherd
