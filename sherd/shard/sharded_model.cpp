#include "sherd/shard/sharded_model.h"

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/shard/discover.h"

namespace sherd {
namespace {

std::vector<NamedShape> shapes_of(const std::vector<FoundParameter>& parameters) {
  std::vector<NamedShape> shapes;
  for (const auto& p : parameters) shapes.push_back({p.fqn, p.tensor.sizes().vec()});
  return shapes;
}

AfterForward after_forward(ReshardPolicy option, bool is_root) {
  if (option == ReshardPolicy::all) return AfterForward::reshard;
  return option == ReshardPolicy::units && !is_root ? AfterForward::reshard : AfterForward::keep;
}

// The reverse of the module tree, units with children (whose backward ends last) at the end.
std::vector<size_t> reduction_order(const StorePlan& plan) {
  std::vector<size_t> order;
  for (const SlotKind kind : {SlotKind::ring, SlotKind::dedicated})
    for (size_t g = plan.groups.size(); g-- > 0;)
      if (plan.groups[g].trainable && plan.groups[g].slot == kind) order.push_back(g);
  return order;
}

}  // namespace

ShardedModel::ShardedModel(std::shared_ptr<torch::nn::Module> root, Transport& transport, Ledger& ledger,
                           ShardOptions options)
    : root_(std::move(root)), transport_(transport) {
  StorePlan plan{options.strategy, options.summing, options.device, {}};
  std::vector<std::vector<at::Tensor>> tensors;
  make_units(options, plan, tensors);
  const std::vector<size_t> order = reduction_order(plan);
  // Strategies that hold whole gradients have every slot to themselves.
  if (options.strategy.gradients == Spread::whole)
    for (auto& group : plan.groups) group.slot = SlotKind::dedicated;
  store_ = make_store(transport_, ledger, plan);

  std::vector<ParamGroup*> pointers;
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    groups_.push_back(
        std::make_unique<ParamGroup>(*store_, g, plan.groups[g], std::move(tensors[g]), options.strategy.parameters));
    pointers.push_back(groups_.back().get());
    units_[unit_of_group_[g]]->groups().push_back(pointers.back());
  }
  reducer_ = std::make_unique<Reducer>(*store_, pointers, order, options.strategy.gradients);
  reducer_->allow_rounds(options.summing == Summing::in_place ? 1 : kAnyRounds);
  const std::weak_ptr<int> alive = alive_;
  for (const size_t g : order) {
    for (size_t p = 0; p < groups_[g]->parameters().size(); ++p)
      accumulators_.push_back(after_accumulation(groups_[g]->parameters()[p], [this, alive, g, p] {
        if (alive.lock()) accumulated(g, p);
      }));
  }
}

ShardedModel::~ShardedModel() {
  for (UnitBase* unit : attached_) unit->attach(nullptr);
}

void ShardedModel::make_units(ShardOptions& options, StorePlan& plan, std::vector<std::vector<at::Tensor>>& tensors) {
  const std::vector<FoundUnit> found = discover_units(*root_);
  for (size_t u = 0; u < found.size(); ++u) {
    units_.push_back(
        std::make_shared<UnitState>(*this, found[u].name, u, after_forward(options.reshard_after_forward, u == 0)));
    if (found[u].unit != nullptr && u != 0) {
      found[u].unit->attach(units_.back());
      attached_.push_back(found[u].unit);
    }
    for (const bool trainable : {true, false}) {
      std::vector<FoundParameter> members;
      for (const auto& p : found[u].parameters)
        if (p.tensor.requires_grad() == trainable) members.push_back(p);
      if (members.empty()) continue;
      GroupPlan group{lay_out(found[u].name, shapes_of(members), transport_.size()),
                      found[u].children > 0 ? SlotKind::dedicated : SlotKind::ring, trainable};
      plan.groups.push_back(std::move(group));
      unit_of_group_.push_back(u);
      tensors.emplace_back();
      for (const auto& p : members) tensors.back().push_back(p.tensor);
    }
  }
  if (plan.groups.empty()) config_error("shard", "got a model without parameters, expected at least one");
}

void ShardedModel::fill(const ParameterSource& source) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    const GroupLayout& layout = groups_[g]->layout();
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      for (const int owner : store_->owned()) {
        const Rows rows = layout.rows(p, owner);
        if (rows.count == 0) continue;
        const at::Tensor to = store_->rows(g, p, owner);
        const at::Tensor staged = to.is_cpu() ? to : at::empty(to.sizes(), at::kFloat);
        const auto& parameter = layout.parameters[p];
        source({parameter.fqn, rows.first, rows.count, parameter.row_elements}, staged.mutable_data_ptr<float>());
        if (!to.is_cpu()) to.copy_(staged);
      }
    }
  }
  publish();
  barrier(transport_);
}

void ShardedModel::set_gradients(Gradients gradients) {
  finish_backward();
  gradients_ = gradients;
}

void ShardedModel::entering_forward(UnitState& unit) {
  if (inside_backward()) {
    entering_backward();
    return;
  }
  if (in_backward_) abandon_backward();  // An exception left it.
  if (unit.index() == 0 || forward_order_now_.size() > 4 * units_.size())
    forward_order_ = std::exchange(forward_order_now_, {});
  forward_order_now_.push_back(unit.index());
}

void ShardedModel::unsharded_in_forward(UnitState& unit) {
  if (inside_backward()) return;
  const auto here = std::find(forward_order_.begin(), forward_order_.end(), unit.index());
  if (here != forward_order_.end() && here + 1 != forward_order_.end()) units_[*(here + 1)]->begin_unshard();
}

void ShardedModel::unsharded_in_backward(UnitState& unit) {
  const auto here = std::find(forward_order_now_.begin(), forward_order_now_.end(), unit.index());
  if (here == forward_order_now_.end() || here == forward_order_now_.begin()) return;
  UnitState& before = *units_[*(here - 1)];
  if (!all_gradients_seen(before)) before.begin_unshard();
}

void ShardedModel::entering_backward() {
  if (in_backward_) return;
  in_backward_ = true;
  ++backward_number_;
  reducer_->begin(gradients_);
  const std::weak_ptr<int> alive = alive_;
  at_end_of_backward([this, alive, number = backward_number_] {
    if (alive.lock() && in_backward_ && number == backward_number_) finish_backward();
  });
}

bool ShardedModel::all_gradients_seen(const UnitState& unit) const {
  return std::all_of(unit.groups().begin(), unit.groups().end(), [&](const ParamGroup* group) {
    return !group->trainable() || (in_backward_ && reducer_->complete(group->index()));
  });
}

void ShardedModel::accumulated(size_t g, size_t p) {
  entering_backward();
  if (reducer_->accumulated(g, p)) units_[unit_of_group_[g]]->maybe_reshard();
}

void ShardedModel::finish_backward() {
  if (!in_backward_) return;
  reducer_->finish();
  in_backward_ = false;
  for (const auto& unit : units_) unit->end_backward();
}

void ShardedModel::abandon_backward() {
  in_backward_ = false;
  reducer_->abandon();
  for (const auto& unit : units_) unit->end_backward();
}

void ShardedModel::publish() {
  reducer_->start_window();
  for (const auto& group : groups_) group->publish();
}

}  // namespace sherd
