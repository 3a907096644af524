#include "sherd/optim/native_products.h"

#include <ATen/cpu/Utils.h>

namespace sherd {

bool has_native_products(at::ScalarType type, at::Device device) {
  if (!device.is_cpu() || type == at::kFloat) return true;
  static const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.isBool() && found->second.toBool();
  };
  if (type == at::kHalf) return has("amx_fp16") || has("avx512_fp16");
  return has("avx512_bf16") || has("amx_bf16") || has("bf16");
}

}  // namespace sherd
