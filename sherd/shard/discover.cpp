#include "sherd/shard/discover.h"

#include <unordered_map>
#include <unordered_set>

#include "sherd/base/error.h"

namespace sherd {
namespace {

struct Use {
  FoundParameter parameter;
  size_t unit;
};

std::string joined(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

size_t lowest_common(const std::vector<FoundUnit>& units, size_t a, size_t b) {
  // Units are listed parents first: the larger index is never an ancestor of the smaller.
  while (a != b) {
    if (a > b) {
      a = units[a].parent;
    } else {
      b = units[b].parent;
    }
  }
  return a;
}

int64_t elements_in(const torch::nn::Module& module) {
  std::unordered_set<const c10::TensorImpl*> seen;
  int64_t elements = 0;
  for (const auto& parameter : module.parameters())
    if (parameter.defined() && seen.insert(parameter.unsafeGetTensorImpl()).second) elements += parameter.numel();
  return elements;
}

class Walk {
 public:
  explicit Walk(const UnitPolicy& policy) : policy_(policy) {}

  std::vector<FoundUnit> units;
  std::vector<Use> uses;  // one a tensor, in the order of first sight

  void visit(torch::nn::Module& module, const std::string& name, size_t unit) {
    for (const auto& item : module.named_parameters(/*recurse=*/false))
      use(joined(name, item.key()), item.value(), unit);
    for (const auto& child : module.named_children()) {
      const std::string child_name = joined(name, child.key());
      size_t child_unit = unit;
      auto* base = dynamic_cast<UnitBase*>(child.value().get());
      candidates += base != nullptr ? 1 : 0;
      // Under a second name it is the same unit: its parameters are tied, which use() sees.
      if (base != nullptr && known_.contains(base)) {
        child_unit = known_.at(base);
      } else if (base != nullptr && chosen(child_name, *child.value())) {
        child_unit = units.size();
        known_.emplace(base, child_unit);
        units.push_back({child_name, base, unit, 0, {}});
        ++units[unit].children;
      }
      visit(*child.value(), child_name, child_unit);
    }
  }

  int candidates = 0;

 private:
  bool chosen(const std::string& name, const torch::nn::Module& module) const {
    return !policy_ || policy_({name, module, elements_in(module)});
  }

  void use(const std::string& fqn, const at::Tensor& tensor, size_t unit) {
    if (!tensor.defined()) return;
    const auto [it, fresh] = seen_.try_emplace(tensor.unsafeGetTensorImpl(), uses.size());
    if (fresh) {
      uses.push_back({{fqn, tensor}, unit});
    } else {
      uses[it->second].unit = lowest_common(units, uses[it->second].unit, unit);
    }
  }

  const UnitPolicy& policy_;
  std::unordered_map<const c10::TensorImpl*, size_t> seen_;
  std::unordered_map<const UnitBase*, size_t> known_;
};

bool can_be_sharded(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

}  // namespace

std::vector<FoundUnit> discover_units(torch::nn::Module& root, const UnitPolicy& policy) {
  Walk walk(policy);
  walk.units.push_back({"", dynamic_cast<UnitBase*>(&root), 0, 0, {}});
  walk.visit(root, "", 0);
  if (walk.candidates > 0 && walk.units.size() == 1)
    config_error("units", "got a policy that chooses none of {} units, expected one or more; try all_units()",
                 walk.candidates);
  std::unordered_set<const c10::StorageImpl*> storages;
  for (auto& use : walk.uses) {
    const at::Tensor& tensor = use.parameter.tensor;
    if (!can_be_sharded(tensor.scalar_type()))
      config_error("shard",
                   "got parameter '{}' of type {}, expected float32, bfloat16 or float16; try "
                   "model.to(torch::kFloat32)",
                   use.parameter.fqn, c10::toString(tensor.scalar_type()));
    const c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
    const bool alone = storage->nbytes() == tensor.nbytes() && storages.insert(storage).second;
    if (!tensor.is_contiguous() || !alone)
      config_error("shard",
                   "got parameter '{}' that is a view or not contiguous, expected a tensor of its own; try "
                   ".contiguous().clone()",
                   use.parameter.fqn);
    walk.units[use.unit].parameters.push_back(std::move(use.parameter));
  }
  return std::move(walk.units);
}

std::vector<std::pair<std::string, std::string>> parameter_aliases(torch::nn::Module& root) {
  std::unordered_map<const c10::TensorImpl*, std::string> first;
  std::vector<std::pair<std::string, std::string>> aliases;
  const std::function<void(torch::nn::Module&, const std::string&)> visit = [&](torch::nn::Module& module,
                                                                                const std::string& name) {
    for (const auto& item : module.named_parameters(/*recurse=*/false)) {
      const std::string fqn = joined(name, item.key());
      aliases.emplace_back(fqn, first.try_emplace(item.value().unsafeGetTensorImpl(), fqn).first->second);
    }
    for (const auto& child : module.named_children()) visit(*child.value(), joined(name, child.key()));
  };
  visit(root, "");
  return aliases;
}

}  // namespace sherd
