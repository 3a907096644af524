#include "sherd/shard/group_planning.h"

#include <algorithm>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/base/glob.h"

namespace sherd {
namespace {

constexpr int64_t kWorthATry = 64 << 20;  // bytes at once that smaller units would save some of

AfterForward after_forward(ReshardPolicy option, bool is_root) {
  if (option == ReshardPolicy::all) return AfterForward::reshard;
  return option == ReshardPolicy::units && !is_root ? AfterForward::reshard : AfterForward::keep;
}

std::vector<size_t> contribution_order(const StorePlan& plan) {
  std::vector<size_t> order;
  for (const SlotKind kind : {SlotKind::ring, SlotKind::dedicated})
    for (size_t g = plan.groups.size(); g-- > 0;)
      if (plan.groups[g].slot == kind) order.push_back(g);
  return order;
}

struct Members {
  ParameterTypes types;
  std::vector<FoundParameter> parameters;
};

ParameterTypes types_of(const FoundParameter& parameter, const ShardOptions& options) {
  if (options.types) return options.types(parameter);
  return {parameter.tensor.scalar_type(), summed_in(parameter.tensor.scalar_type())};
}

std::vector<NamedShape> shapes_of(const std::vector<FoundParameter>& parameters, const ShardOptions& options) {
  std::vector<NamedShape> shapes;
  for (const auto& p : parameters) shapes.push_back({p.fqn, p.tensor.sizes().vec(), types_of(p, options).copies});
  return shapes;
}

// Trainable ones first, types as they appear.
std::vector<Members> in_groups(const std::vector<FoundParameter>& parameters, const ShardOptions& options) {
  std::vector<Members> groups;
  for (const bool trainable : {true, false}) {
    const size_t first = groups.size();
    for (const auto& p : parameters) {
      if (p.tensor.requires_grad() != trainable) continue;
      const ParameterTypes types = types_of(p, options);
      auto group = std::find_if(groups.begin() + static_cast<std::ptrdiff_t>(first), groups.end(), [&](const auto& g) {
        return g.parameters[0].tensor.scalar_type() == p.tensor.scalar_type() && g.types.storage == types.storage &&
               g.types.reduce == types.reduce;
      });
      if (group == groups.end()) group = groups.insert(group, Members{types, {}});
      group->parameters.push_back(p);
    }
  }
  return groups;
}

GroupPlan plan_group(const FoundUnit& unit, const Members& members, const ShardOptions& options, int ranks) {
  const at::Tensor& first = members.parameters[0].tensor;
  GroupPlan group;
  group.layout = lay_out(unit.name, shapes_of(members.parameters, options), ranks);
  group.slot = unit.children > 0 ? SlotKind::dedicated : SlotKind::ring;
  group.set_roles(Roles(members.parameters.size(), first.requires_grad() ? Role::awaited : Role::frozen));
  group.type = members.types.storage;
  group.reduce = members.types.reduce;
  group.compute = first.scalar_type();
  const bool small = group.layout.whole_elements * group.element_bytes() < options.persistent_below;
  group.parameters = small ? Spread::whole : options.strategy.parameters;
  group.access = any_glob_matches(options.writing_units, unit.name) ? Access::write : options.access;
  if (group.access == Access::write && group.type != group.compute)
    config_error("writing_units", "got {}, which computes with {} and is stored as {}, expected one type; try '{}'",
                 title_of_unit(unit.name), toString(group.compute), toString(group.type), "storage fp32");
  return group;
}

void warn_of_large_units(ModelPlan& plan, int ranks) {
  std::vector<int64_t> bytes(plan.units.size(), 0);
  int64_t all = 0;
  for (size_t g = 0; g < plan.store.groups.size(); ++g) {
    const int64_t own = plan.store.groups[g].layout.whole_elements * plan.store.groups[g].element_bytes();
    bytes[plan.unit_of_group[g]] += own;
    all += own;
  }
  const auto largest = std::max_element(bytes.begin(), bytes.end());
  if (ranks == 1 || 2 * *largest <= all || 2 * *largest < kWorthATry) return;
  plan.warnings.push_back(fmt::format(
      "{} holds {} of the model's {}: whole parameters and gradients of it take up to {} on each rank at once; "
      "try smaller units",
      title_of_unit(plan.units[static_cast<size_t>(largest - bytes.begin())].name), format_bytes(*largest),
      format_bytes(all), format_bytes(2 * *largest)));
}

}  // namespace

ModelPlan plan_model(const std::vector<FoundUnit>& found, const ShardOptions& options, int ranks) {
  options.strategy.validate(options.mesh);
  for (const auto& pattern : options.writing_units)
    if (std::none_of(found.begin(), found.end(), [&](const auto& unit) { return glob_matches(pattern, unit.name); }))
      config_error("writing_units", "got '{}', which no unit's name matches; try one of the units' names", pattern);
  ModelPlan plan;
  plan.store = {options.strategy, options.summing, options.device, {}, options.codec};
  size_t outermost = 0;
  for (size_t u = 0; u < found.size(); ++u) {
    const bool recomputed = u != 0 && found[u].parent == 0 && options.recompute.applies_to(outermost++);
    plan.units.push_back({found[u].name,
                          found[u].after_forward.value_or(after_forward(options.reshard_after_forward, u == 0)),
                          recomputed ? Activations::recompute : Activations::keep});
    for (const Members& members : in_groups(found[u].parameters, options)) {
      plan.store.groups.push_back(plan_group(found[u], members, options, ranks));
      plan.unit_of_group.push_back(u);
      auto& tensors = plan.parameters.emplace_back();
      for (const auto& p : members.parameters) tensors.push_back(p.tensor);
    }
  }
  if (plan.store.groups.empty()) config_error("shard", "got a model without parameters, expected at least one");
  plan.contribution_order = contribution_order(plan.store);
  // Strategies that hold whole gradients have every slot to themselves.
  if (options.strategy.gradients == Spread::whole)
    for (auto& group : plan.store.groups) group.slot = SlotKind::dedicated;
  warn_of_large_units(plan, ranks);
  return plan;
}

}  // namespace sherd
