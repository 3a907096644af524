#include "sherd/shard/sharded_model.h"

#include <algorithm>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/base/glob.h"
#include "sherd/shard/discover.h"

namespace sherd {
namespace {

constexpr int64_t kWorthATry = 64 << 20;  // bytes at once that smaller units would save some of

AfterForward after_forward(ReshardPolicy option, bool is_root) {
  if (option == ReshardPolicy::all) return AfterForward::reshard;
  return option == ReshardPolicy::units && !is_root ? AfterForward::reshard : AfterForward::keep;
}

// The reverse of the module tree, units with children (whose backward ends last) at the end.
std::vector<size_t> reduction_order(const StorePlan& plan) {
  std::vector<size_t> order;
  for (const SlotKind kind : {SlotKind::ring, SlotKind::dedicated})
    for (size_t g = plan.groups.size(); g-- > 0;)
      if (plan.groups[g].slot == kind) order.push_back(g);
  return order;
}

// Where there is one copy of everything, the mesh does not matter.
StoreTransports transports_on(const Mesh& mesh, Transport& transport) {
  const auto all = std::shared_ptr<Transport>(std::shared_ptr<void>(), &transport);
  if (mesh.replicate == 1 || transport.topology().one_memory()) return {all, nullptr};
  return {all->subgroup(mesh.shard_ranks()), all->subgroup(mesh.replicate_ranks())};
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

// Parameters that communicate together: of the same types, trainable or not. Trainable ones first, types as they
// appear.
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

// The caller of the whole model stands for the root: it is no unit, even where its module could be one.
std::vector<FoundUnit> units_below(torch::nn::Module& root, const UnitPolicy& policy) {
  std::vector<FoundUnit> found = discover_units(root, policy);
  found.front().unit = nullptr;
  return found;
}

}  // namespace

ShardedModel::ShardedModel(std::shared_ptr<torch::nn::Module> root, Transport& transport, Ledger& ledger,
                           ShardOptions options)
    : ShardedModel(units_below(*root, options.units), transport, ledger, options) {
  root_ = std::move(root);
}

ShardedModel::ShardedModel(std::vector<FoundUnit> units, Transport& transport, Ledger& ledger, ShardOptions options)
    : transport_(transport), casts_(ledger, MemoryKind::unsharded, options.device) {
  transport_.resume();
  recoveries_ = transport_.recoveries();
  StorePlan plan{options.strategy, options.summing, options.device, {}, options.codec};
  std::vector<std::vector<at::Tensor>> tensors;
  make_units(units, options, plan, tensors);
  const std::vector<size_t> order = reduction_order(plan);
  // Strategies that hold whole gradients have every slot to themselves.
  if (options.strategy.gradients == Spread::whole)
    for (auto& group : plan.groups) group.slot = SlotKind::dedicated;
  StoreTransports transports = transports_on(options.mesh, transport_);
  shard_transport_ = transports.shard;
  warn_of_large_units(plan);
  store_ = make_store(std::move(transports), ledger, plan);

  std::vector<ParamGroup*> pointers;
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    groups_.push_back(std::make_unique<ParamGroup>(*store_, casts_, g, plan.groups[g], std::move(tensors[g])));
    pointers.push_back(groups_.back().get());
    units_[unit_of_group_[g]]->groups().push_back(pointers.back());
    lets_go_ = lets_go_ || pointers.back()->lets_go();
  }
  reducer_ = std::make_unique<Reducer>(*store_, pointers, order, options.strategy.gradients);
  reducer_->allow_rounds(options.summing == Summing::in_place ? 1 : kAnyRounds);
  for (const auto& group : groups_) accumulators_.emplace_back(group->parameters().size());
  watch_gradients();
}

// A parameter's node lives as long as its hook, also while it is frozen.
void ShardedModel::watch_gradients() {
  const std::weak_ptr<int> alive = alive_;
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (size_t p = 0; p < groups_[g]->parameters().size(); ++p) {
      if (accumulators_[g][p] || groups_[g]->roles()[p] != Role::awaited) continue;
      accumulators_[g][p] = after_accumulation(groups_[g]->parameters()[p], [this, alive, g, p] {
        if (alive.lock()) run_in_backward([&] { accumulated(g, p); });
      });
    }
  }
}

void ShardedModel::check_roles() const {
  for (const auto& group : groups_)
    for (size_t p = 0; p < group->parameters().size(); ++p) {
      const bool trains = group->roles()[p] == Role::awaited;
      if (group->parameters()[p].requires_grad() != trains)
        config_error("shard",
                     "got requires_grad={} of parameter '{}', which was {} when the engine took its model, expected no "
                     "change; try to freeze parameters before, or a new engine",
                     !trains, group->layout().parameters[p].fqn, trains ? "trainable" : "frozen");
    }
}

std::vector<size_t> ShardedModel::set_roles(const std::vector<Roles>& roles) {
  store_->set_roles(roles);
  std::vector<size_t> moved;
  for (size_t g = 0; g < groups_.size(); ++g)
    if (groups_[g]->set_roles(roles[g])) moved.push_back(g);
  reducer_->follow_roles();
  watch_gradients();
  return moved;
}

ShardedModel::~ShardedModel() {
  for (UnitBase* unit : attached_) unit->attach(nullptr);
}

void ShardedModel::make_units(const std::vector<FoundUnit>& found, const ShardOptions& options, StorePlan& plan,
                              std::vector<std::vector<at::Tensor>>& tensors) {
  for (const auto& pattern : options.writing_units)
    if (std::none_of(found.begin(), found.end(), [&](const auto& unit) { return glob_matches(pattern, unit.name); }))
      config_error("writing_units", "got '{}', which no unit's name matches; try one of the units' names", pattern);
  const bool one_row = transport_.topology().one_memory() || options.mesh.replicate == 1;
  const int owners = one_row ? transport_.size() : options.mesh.shard;
  size_t outermost = 0;
  for (size_t u = 0; u < found.size(); ++u) {
    const bool recomputed = u != 0 && found[u].parent == 0 && options.recompute.applies_to(outermost++);
    const AfterForward keep = found[u].after_forward.value_or(after_forward(options.reshard_after_forward, u == 0));
    units_.push_back(std::make_shared<UnitState>(*this, found[u].name, u, keep,
                                                 recomputed ? Activations::recompute : Activations::keep));
    if (found[u].unit != nullptr) {
      found[u].unit->attach(units_.back());
      attached_.push_back(found[u].unit);
    }
    for (const auto& [types, members] : in_groups(found[u].parameters, options)) {
      GroupPlan group;
      group.layout = lay_out(found[u].name, shapes_of(members, options), owners);
      group.slot = found[u].children > 0 ? SlotKind::dedicated : SlotKind::ring;
      group.set_roles(Roles(members.size(), members[0].tensor.requires_grad() ? Role::awaited : Role::frozen));
      group.type = types.storage;
      group.reduce = types.reduce;
      group.compute = members[0].tensor.scalar_type();
      if (group.layout.whole_elements * group.element_bytes() < options.persistent_below)
        group.parameters = Spread::whole;
      if (options.strategy.parameters == Spread::whole) group.parameters = Spread::whole;
      group.access = any_glob_matches(options.writing_units, found[u].name) ? Access::write : options.access;
      if (group.access == Access::write && group.type != group.compute)
        config_error("writing_units", "got {}, which computes with {} and is stored as {}, expected one type; try '{}'",
                     title_of_unit(found[u].name), toString(group.compute), toString(group.type), "storage fp32");
      plan.groups.push_back(std::move(group));
      unit_of_group_.push_back(u);
      tensors.emplace_back();
      for (const auto& p : members) tensors.back().push_back(p.tensor);
    }
  }
  if (plan.groups.empty()) config_error("shard", "got a model without parameters, expected at least one");
}

void ShardedModel::fill(const ParameterSource& source) {
  fill(source, [this](size_t g, size_t p, size_t o, const at::Tensor& values) {
    const at::Tensor to = store_->rows(g, p, store_->owned()[o]);
    if (to.const_data_ptr() != values.const_data_ptr()) to.copy_(values);
  });
}

void ShardedModel::fill(const ParameterSource& source, const SetRows& set) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    const GroupLayout& layout = groups_[g]->layout();
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      for (size_t o = 0; o < store_->owned().size(); ++o) {
        const int owner = store_->owned()[o];
        const Rows rows = layout.rows(p, owner);
        if (rows.count == 0) continue;
        const at::Tensor to = store_->rows(g, p, owner);
        const bool direct = to.is_cpu() && to.scalar_type() == at::kFloat;
        const at::Tensor staged = direct ? to : at::empty(to.sizes(), at::kFloat);
        const auto& parameter = layout.parameters[p];
        source({parameter.fqn, rows.first, rows.count, parameter.row_elements}, staged.mutable_data_ptr<float>());
        set(g, p, o, staged);
      }
    }
  }
  publish();
  barrier(transport_);
}

at::Tensor ShardedModel::gradient_rows(size_t g, size_t p, size_t o) {
  const GroupLayout& layout = groups_[g]->gradient_layout();
  const int64_t first = static_cast<int64_t>(o) * layout.shard_elements + layout.parameters[p].shard_offset;
  return store_->gradient(g).narrow(0, first, layout.elements(p, store_->owned()[o]).count);
}

void ShardedModel::warn_of_large_units(const StorePlan& plan) {
  std::vector<int64_t> bytes(units_.size(), 0);
  int64_t all = 0;
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    bytes[unit_of_group_[g]] += plan.groups[g].layout.whole_elements * plan.groups[g].element_bytes();
    all += plan.groups[g].layout.whole_elements * plan.groups[g].element_bytes();
  }
  const auto largest = std::max_element(bytes.begin(), bytes.end());
  if (transport_.size() == 1 || 2 * *largest <= all || 2 * *largest < kWorthATry) return;
  const std::string& name = units_[static_cast<size_t>(largest - bytes.begin())]->name();
  warnings_.push_back(fmt::format(
      "{} holds {} of the model's {}: whole parameters and gradients of it take up to {} on each rank at once; "
      "try smaller units",
      title_of_unit(name), format_bytes(*largest), format_bytes(all), format_bytes(2 * *largest)));
}

}  // namespace sherd
