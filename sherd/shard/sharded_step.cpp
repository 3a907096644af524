// What happens in a sharded model from a forward to the step: the order of its units, backwards, interruptions.
#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/shard/finite.h"
#include "sherd/shard/sharded_model.h"

namespace sherd {
namespace {

/// What ranks tell each other of their step after an abort.
struct Progress {
  double schedule = 0;  // a hash
  bool interrupted = false;
};

}  // namespace

void ShardedModel::compare_schedules(std::span<const double> hashes) const {
  std::vector<std::string> names;
  for (const auto& unit : units_) names.push_back(unit->name());
  schedule_.compare(hashes, transport_, names);
}

void ShardedModel::set_gradients(Gradients gradients) {
  finish_backward();
  gradients_ = gradients;
}

void ShardedModel::set_gradients(const UnitState& unit, Gradients gradients) {
  finish_backward();
  for (const auto* group : unit.groups()) reducer_->set_gradients(group->index(), gradients);
}

void ShardedModel::entering_forward(UnitState& unit) {
  if (inside_backward()) {
    entering_backward();
    return;
  }
  if (in_backward_) interrupt("an exception ended a backward");
  recover();
  if (at::GradMode::is_enabled()) schedule_.add(unit.index());
  if (unit.index() == 0 || forward_order_now_.size() > 4 * units_.size())
    forward_order_ = std::exchange(forward_order_now_, {});
  forward_order_now_.push_back(unit.index());
}

void ShardedModel::unsharded(UnitState& unit, Pass pass) {
  if (pass == Pass::forward) {
    const auto here = std::find(forward_order_.begin(), forward_order_.end(), unit.index());
    if (here != forward_order_.end() && here + 1 != forward_order_.end()) units_[*(here + 1)]->begin_unshard(pass);
    return;
  }
  const auto here = std::find(forward_order_now_.begin(), forward_order_now_.end(), unit.index());
  if (here == forward_order_now_.end() || here == forward_order_now_.begin()) return;
  UnitState& before = *units_[*(here - 1)];
  if (!all_gradients_seen(before)) before.begin_unshard(pass);
}

void ShardedModel::leaving_forward(const UnitState& unit, const std::vector<at::Tensor>& outputs) {
  if (at::GradMode::is_enabled() && !inside_backward()) {
    if (!non_finite_ && !std::all_of(outputs.begin(), outputs.end(), is_finite))
      non_finite_ = {unit.index(), forwards_};
    ++forwards_;
  }
  // A write to shared memory counts for both: what has been told is not told again.
  try {
    store_->check_unwritten();
  } catch (const FaultError&) {
    for (auto* group : unit.groups()) group->accept_changes();
    throw;
  }
  for (auto* group : unit.groups()) group->check_unchanged();
}

void ShardedModel::entering_backward() {
  if (in_backward_) return;
  if (!said_) said_.emplace(*this, "backward");
  recover();
  makes_graph_ = at::GradMode::is_enabled();
  first_of_backward_ = next_node();
  in_backward_ = true;
  ++backward_number_;
  events_.begin();
  reducer_->begin(gradients_);
  at_end_of_backward(
      [this, alive = std::weak_ptr(alive_), number = backward_number_] {
        if (alive.lock() && in_backward_ && number == backward_number_) run_in_backward([this] { finish_backward(); });
      },
      [this, alive = std::weak_ptr(alive_), number = backward_number_] {
        if (alive.lock() && in_backward_ && number == backward_number_) events_.broken();
      });
}

bool ShardedModel::all_gradients_seen(const UnitState& unit) const {
  return std::all_of(unit.groups().begin(), unit.groups().end(), [&](const ParamGroup* group) {
    return reducer_->awaits_none(group->index()) || (in_backward_ && reducer_->complete(group->index()));
  });
}

void ShardedModel::accumulated(size_t g, size_t p) {
  entering_backward();
  if (reducer_->accumulated(g, p)) units_[unit_of_group_[g]]->maybe_reshard();
}

// Of a unit whose parameters stay where they are, nodes need not call for it.
void ShardedModel::made_nodes(NodeMark first, std::function<void()> reached, const std::vector<AutogradNode>& hooked) {
  if (lets_go_) node_ranges_.add(first, std::move(reached), hooked);
}

// Nothing says which of the second graph's nodes need which unit: any of them may need all that this backward has met.
void ShardedModel::keep_second_graph() {
  std::vector<std::weak_ptr<UnitState>> met;
  for (const auto& unit : units_)
    if (unit->met_in() == backward_number_) met.push_back(unit);
  const auto reached = [this, alive = std::weak_ptr(alive_), met = std::move(met)] {
    if (!alive.lock()) return;
    run_in_backward([&] {
      entering_backward();
      for (const auto& weak : met)
        if (const auto unit = weak.lock()) unit->unshard_until_end();
    });
  };
  made_nodes(first_of_backward_, reached, {});
}

void ShardedModel::expect_backward(const std::vector<at::Tensor>& roots) {
  if (!node_ranges_.empty()) node_ranges_.hook_entries(output_nodes(roots));
}

void ShardedModel::reduce_held() {
  finish_backward();
  reducer_->begin(Gradients::reduce);
  for (size_t g = 0; g < groups_.size(); ++g)
    for (size_t p = 0; p < groups_[g]->parameters().size(); ++p)
      if (groups_[g]->parameters()[p].grad().defined()) reducer_->accumulated(g, p);
  reducer_->finish();
}

void ShardedModel::finish_backward() {
  if (!in_backward_) return;
  if (makes_graph_) keep_second_graph();
  reducer_->finish();
  for (const auto& unit : units_) unit->end_backward();
  events_.end();
  in_backward_ = false;
  said_.reset();
}

void ShardedModel::interrupt(std::string_view cause) noexcept {
  transport_.abort(cause);
  drop_step();
}

void ShardedModel::drop_step() noexcept {
  interrupted_ = true;
  in_backward_ = false;
  said_.reset();
  reducer_->abandon();
  schedule_.clear();
  forget_forwards();
  forget_order();
  store_->drop();
  for (const auto& unit : units_) unit->interrupt();
}

void ShardedModel::forget_forwards() noexcept {
  forwards_ = 0;
  non_finite_.reset();
}

// Ranks were interrupted at different places: prefetching by what each has seen would part their collectives.
void ShardedModel::forget_order() noexcept {
  forward_order_.clear();
  forward_order_now_.clear();
}

// The family may have recovered in a call of another model, whose exception this one need not have met: the ranks tell
// each other whether they were in the same place of this model's step, and only if not is it dropped.
bool ShardedModel::recover() {
  transport_.resume();
  if (recoveries_ == transport_.recoveries()) return false;
  recoveries_ = transport_.recoveries();
  const Progress mine{schedule_.hash(), interrupted_};
  const std::vector<Progress> all = transport_.exchange(mine, "how far a step was");
  const bool in_step = std::all_of(all.begin(), all.end(), [&](const Progress& theirs) {
    return !theirs.interrupted && theirs.schedule == mine.schedule;
  });
  if (in_step) {
    forget_order();
    for (const auto& group : groups_) group->abandon_unshard();
    return false;
  }
  if (!interrupted_) drop_step();
  store_->restart();
  interrupted_ = false;
  return true;
}

void ShardedModel::publish() {
  reducer_->start_window();
  schedule_.clear();
  forget_forwards();
  node_ranges_.clear();
  for (const auto& group : groups_) group->publish();
}

}  // namespace sherd
