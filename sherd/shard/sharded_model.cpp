#include "sherd/shard/sharded_model.h"

#include "sherd/base/error.h"

namespace sherd {
namespace {

// Where there is one copy of everything, the mesh does not matter.
StoreTransports transports_on(const Mesh& mesh, Transport& transport) {
  const auto all = std::shared_ptr<Transport>(std::shared_ptr<void>(), &transport);
  if (mesh.replicate == 1 || transport.topology().one_memory()) return {all, nullptr};
  return {all->subgroup(mesh.shard_ranks()), all->subgroup(mesh.replicate_ranks())};
}

int ranks_on(const Mesh& mesh, const Transport& transport) {
  return mesh.replicate == 1 || transport.topology().one_memory() ? transport.size() : mesh.shard;
}

// The caller of the whole model stands for the root: it is no unit, even where its module could be one.
std::vector<FoundUnit> units_below(torch::nn::Module& root, const UnitPolicy& policy) {
  std::vector<FoundUnit> found = discover_units(root, policy);
  found.front().unit = nullptr;
  return found;
}

}  // namespace

ShardedModel::ShardedModel(std::shared_ptr<torch::nn::Module> root, Transport& transport, Ledger& ledger,
                           const ShardOptions& options)
    : ShardedModel(units_below(*root, options.units), transport, ledger, options) {
  root_ = std::move(root);
}

ShardedModel::ShardedModel(const std::vector<FoundUnit>& units, Transport& transport, Ledger& ledger,
                           const ShardOptions& options)
    : transport_(transport), casts_(ledger, MemoryKind::unsharded, options.device) {
  transport_.resume();
  ModelPlan plan = plan_model(units, options, ranks_on(options.mesh, transport_));
  warnings_ = plan.warnings;
  StoreTransports transports = transports_on(options.mesh, transport_);
  shard_transport_ = transports.shard;
  store_ = make_store(std::move(transports), ledger, plan.store);
  std::vector<ParamGroup*> pointers;
  for (size_t g = 0; g < plan.store.groups.size(); ++g) {
    groups_.push_back(
        std::make_unique<ParamGroup>(*store_, casts_, g, plan.store.groups[g], std::move(plan.parameters[g])));
    pointers.push_back(groups_.back().get());
    accumulators_.emplace_back(groups_.back()->parameters().size());
  }
  reducer_ = std::make_unique<Reducer>(*store_, pointers, plan.contribution_order, options.strategy.gradients);
  reducer_->allow_rounds(options.summing == Summing::in_place ? 1 : kAnyRounds);
  course_ = std::make_unique<Course>(transport_, *store_, groups_, *reducer_);
  for (size_t u = 0; u < units.size(); ++u) {
    const PlannedUnit& unit = plan.units[u];
    UnitState& state = course_->add_unit(unit.name, unit.after_forward, unit.activations);
    if (units[u].unit == nullptr) continue;
    units[u].unit->attach(state.shared_from_this());
    attached_.push_back(units[u].unit);
  }
  for (size_t g = 0; g < groups_.size(); ++g) course_->assign(g, plan.unit_of_group[g]);
  watch_gradients();
}

// A parameter's node lives as long as its hook, also while it is frozen.
void ShardedModel::watch_gradients() {
  const std::weak_ptr<int> alive = alive_;
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (size_t p = 0; p < groups_[g]->parameters().size(); ++p) {
      if (accumulators_[g][p] || groups_[g]->roles()[p] != Role::awaited) continue;
      accumulators_[g][p] = after_accumulation(groups_[g]->parameters()[p], [this, alive, g, p] {
        if (alive.lock()) course_->run_in_backward([&] { course_->accumulated(g, p); });
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
  course_->publish();
  barrier(transport_);
}

at::Tensor ShardedModel::gradient_rows(size_t g, size_t p, size_t o) {
  const GroupLayout& layout = groups_[g]->gradient_layout();
  const int64_t first = static_cast<int64_t>(o) * layout.shard_elements + layout.parameters[p].shard_offset;
  return store_->gradient(g).narrow(0, first, layout.elements(p, store_->owned()[o]).count);
}

}  // namespace sherd
