#include "sherd/shard/module_values.h"

#include <cstring>
#include <map>

#include "sherd/base/error.h"

namespace sherd {

ParameterSource module_values(torch::nn::Module& module) {
  std::map<std::string, at::Tensor> values;
  for (const auto& item : module.named_parameters())
    values[item.key()] = item.value().detach().to(at::kCPU, at::kFloat).contiguous().clone();
  return [values = std::move(values)](const RowRange& range, float* out) {
    const auto found = values.find(range.fqn);
    if (found == values.end())
      config_error("module_values", "got no parameter '{}', expected those of the module; try the same module",
                   range.fqn);
    std::memcpy(out, found->second.const_data_ptr<float>() + range.first_row * range.row_elements,
                static_cast<size_t>(range.rows * range.row_elements) * sizeof(float));
  };
}

}  // namespace sherd
