#include "sherd/models/deferred.h"

#include <c10/core/CPUAllocator.h>

#include <fmt/ranges.h>
#include <unordered_set>

namespace sherd {

at::Tensor deferred_parameter(at::IntArrayRef sizes) {
  auto tensor = at::from_blob(nullptr, sizes, at::TensorOptions().dtype(at::kFloat).device(at::kCPU));
  std::string shape = fmt::format("[{}]", fmt::join(sizes, ", "));
  tensor.unsafeGetTensorImpl()
      ->unsafe_storage()
      .unsafeGetStorageImpl()
      ->release_data_and_set_meta_custom_data_ptr_error_msg_(fmt::format(
          "[models] a parameter of shape {} has no memory yet; shard or materialize the model first", shape));
  return tensor.requires_grad_();
}

RowRange whole_parameter(std::string fqn, at::IntArrayRef sizes) {
  RowRange range{.fqn = std::move(fqn), .first_row = 0, .rows = sizes.empty() ? 1 : sizes[0]};
  for (size_t dim = 1; dim < sizes.size(); ++dim) range.row_elements *= sizes[dim];
  return range;
}

void materialize(torch::nn::Module& module, const ParameterSource& source) {
  std::unordered_set<at::TensorImpl*> seen;
  for (auto& item : module.named_parameters()) {
    auto* tensor = item.value().unsafeGetTensorImpl();
    if (!seen.insert(tensor).second) continue;
    auto* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
    auto memory = c10::GetCPUAllocator()->allocate(storage->nbytes());
    auto* values = static_cast<float*>(memory.get());
    storage->set_data_ptr_noswap(std::move(memory));
    storage->clear_data_ptr_access_error_msg_();
    if (item.value().numel() > 0) source(whole_parameter(item.key(), item.value().sizes()), values);
    tensor->bump_version();
  }
}

}  // namespace sherd
