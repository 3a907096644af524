#include "sherd/shard/finite.h"

#include <algorithm>
#include <cmath>

#include "sherd/kernels/norm.h"

namespace sherd {
namespace {

bool has_values(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_cpu() && tensor.layout() == at::kStrided && tensor.has_storage() &&
         !tensor._is_zerotensor() && tensor.is_contiguous() &&
         !tensor.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) && tensor.numel() > 0;
}

/// Whether all exponents have a zero: those of infinities and NaNs have none.
bool exponents_have_zeros(const uint16_t* bits, int64_t n, uint16_t exponent) {
  int found = 0;
  for (int64_t i = 0; i < n; ++i) found |= static_cast<int>((bits[i] & exponent) == exponent);
  return found == 0;
}

}  // namespace

bool is_finite(const at::Tensor& values) {
  if (!has_values(values)) return true;
  if (values.is_complex()) return is_finite(at::view_as_real(values.resolve_conj()));
  const void* data = values.const_data_ptr();
  switch (values.scalar_type()) {
    case at::kFloat:  // the sum is in fp64, where squares of fp32 do not overflow
      return std::isfinite(kernels::sum_of_squares(static_cast<const float*>(data), values.numel()));
    case at::kDouble: {
      const auto* first = static_cast<const double*>(data);
      return std::all_of(first, first + values.numel(), [](double value) { return std::isfinite(value); });
    }
    case at::kBFloat16:
      return exponents_have_zeros(static_cast<const uint16_t*>(data), values.numel(), 0x7F80);
    case at::kHalf:
      return exponents_have_zeros(static_cast<const uint16_t*>(data), values.numel(), 0x7C00);
    default:
      return true;
  }
}

}  // namespace sherd
