#include "sherd/engine/precision.h"

#include <algorithm>
#include <cctype>

#include "sherd/base/error.h"
#include "sherd/optim/native_products.h"

namespace sherd {

bool Precision::keeps_fp32(std::string_view fqn) const { return any_glob_matches(fp32_names, fqn); }

bool named_as_norm(std::string_view module, std::string_view class_name) {
  const auto has_norm = [](std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    return lower.find("norm") != std::string::npos;
  };
  // Of C++ classes: without template arguments and namespaces.
  class_name = class_name.substr(0, class_name.find('<'));
  if (const size_t last = class_name.rfind(':'); last != std::string_view::npos) class_name.remove_prefix(last + 1);
  return has_norm(class_name) || has_norm(module.substr(module.rfind('.') + 1));
}

std::vector<std::string> norm_parameters(const torch::nn::Module& model) {
  std::vector<std::string> names;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    const torch::nn::Module& module = *item.value();
    const auto parameters = module.named_parameters(/*recurse=*/false);
    const bool flat = std::all_of(parameters.begin(), parameters.end(), [](const auto& p) { return p->dim() <= 1; });
    if (!module.children().empty() || !flat || !named_as_norm(item.key(), module.name())) continue;
    for (const auto& parameter : parameters) names.push_back(item.key() + "." + parameter.key());
  }
  return names;
}

at::ScalarType precision_type(std::string_view key, std::string_view name) {
  return named(kPrecisionTypeNames, name, key, "bf16");
}

namespace {

Master master_of(const PrecisionPolicy& policy, at::ScalarType storage) {
  if (storage == at::kFloat) {
    if (policy.master.value_or("fp32") != "fp32")
      config_error("precision.master",
                   "got '{}' with fp32 storage, which is its own master, expected fp32; try storage bf16",
                   *policy.master);
    return Master::fp32;
  }
  const std::string name = policy.master.value_or(storage == at::kHalf ? "fp32" : "split");
  if (name == "fp32") return Master::fp32;
  if (name != "split" && name != "none")
    config_error("precision.master", "got '{}', expected fp32, split or none; try split", name);
  if (storage == at::kHalf)
    config_error("precision.master", "got '{}' with fp16 storage, expected fp32 (others are for bf16); try fp32", name);
  return name == "split" ? Master::split : Master::stochastic;
}

}  // namespace

Precision resolve(const PrecisionPolicy& policy, at::Device device) {
  const bool automatic = policy.compute == "auto";
  Precision precision;
  if (!automatic) precision.compute = precision_type("precision.compute", policy.compute);
  precision.storage = precision_type("precision.storage", policy.storage.value_or(automatic ? "bf16" : policy.compute));
  const bool native = has_native_products(precision.storage, device);
  if (automatic && native) precision.compute = precision.storage;
  precision.reduce = precision_type("precision.reduce", policy.reduce.value_or("fp32"));
  precision.master = master_of(policy, precision.storage);
  if (precision.is_mixed()) precision.norms = policy.norms;
  if (!device.is_cpu() && (precision.master == Master::split || precision.master == Master::stochastic))
    config_error("precision.master", "got '{}' on {}, expected fp32 (others are for the CPU); try fp32",
                 policy.master.value_or("split"), device.str());
  return precision;
}

std::optional<std::string> note_on(const PrecisionPolicy& policy, const Precision& precision, at::Device device) {
  if (!device.is_cpu()) return std::nullopt;
  if (policy.compute == "auto" && precision.compute != precision.storage)
    return fmt::format("precision: this CPU has no {0} products: parameters are stored as {0}, computed with as fp32",
                       text_of(kPrecisionTypeNames, precision.storage));
  if (!has_native_products(precision.compute, device))
    return fmt::format("precision: this CPU has no {} products of its own: compute \"auto\" is faster",
                       text_of(kPrecisionTypeNames, precision.compute));
  return std::nullopt;
}

}  // namespace sherd
