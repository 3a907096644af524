#include "sherd/memory/deferred.h"

#include <c10/core/Allocator.h>
#include <fmt/ranges.h>
#include <unordered_set>

#include "sherd/torch/versions.h"

namespace sherd {

at::Tensor deferred_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  // The device is named, not asked of the address: there is none.
  auto tensor = at::for_blob(nullptr, sizes).options(options).target_device(options.device()).make_tensor();
  std::string shape = fmt::format("[{}]", fmt::join(sizes, ", "));
  tensor.unsafeGetTensorImpl()
      ->unsafe_storage()
      .unsafeGetStorageImpl()
      ->release_data_and_set_meta_custom_data_ptr_error_msg_(fmt::format(
          "[models] a parameter of shape {} has no memory yet; shard or materialize the model first", shape));
  return tensor;
}

at::Tensor deferred_parameter(at::IntArrayRef sizes, at::Device device) {
  return deferred_tensor(sizes, at::TensorOptions().dtype(at::kFloat).device(device)).requires_grad_();
}

RowRange whole_parameter(std::string fqn, at::IntArrayRef sizes) {
  RowRange range{.fqn = std::move(fqn), .first_row = 0, .rows = sizes.empty() ? 1 : sizes[0]};
  for (size_t dim = 1; dim < sizes.size(); ++dim) range.row_elements *= sizes[dim];
  return range;
}

namespace {

/// Fills `to` from `source`, by way of the CPU where it lies elsewhere.
void fill(const at::Tensor& to, const RowRange& range, const ParameterSource& source) {
  if (to.numel() == 0) return;
  const at::Tensor staged = to.is_cpu() ? to : at::empty(to.sizes(), at::kFloat);
  source(range, staged.mutable_data_ptr<float>());
  if (!to.is_cpu()) to.copy_(staged);
}

}  // namespace

void materialize(torch::nn::Module& module, const ParameterSource& source) {
  std::unordered_set<at::TensorImpl*> seen;
  for (auto& item : module.named_parameters()) {
    auto* tensor = item.value().unsafeGetTensorImpl();
    if (!seen.insert(tensor).second) continue;
    auto* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
    point_storage(*storage, c10::GetAllocator(storage->device_type())->allocate(storage->nbytes()));
    fill(item.value().detach(), whole_parameter(item.key(), item.value().sizes()), source);
    tensor->bump_version();
  }
}

}  // namespace sherd
