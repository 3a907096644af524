#include "sherd/shard/course.h"

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/shard/finite.h"

namespace sherd {
namespace {

/// What ranks tell each other of their step after an abort.
struct Progress {
  double schedule = 0;  // a hash
  bool interrupted = false;
};

}  // namespace

Course::Course(Transport& transport, Store& store, Groups& groups, Reducer& reducer)
    : transport_(transport),
      store_(store),
      groups_(groups),
      reducer_(reducer),
      unit_of_group_(groups.size()),
      recoveries_(transport.recoveries()) {
  for (const auto& group : groups_) lets_go_ = lets_go_ || group->lets_go();
}

UnitState& Course::add_unit(std::string name, AfterForward after_forward, Activations activations) {
  units_.push_back(std::make_shared<UnitState>(*this, std::move(name), units_.size(), after_forward, activations));
  return *units_.back();
}

void Course::assign(size_t group, size_t unit) {
  unit_of_group_[group] = unit;
  units_[unit]->groups().push_back(groups_[group].get());
}

void Course::compare_schedules(std::span<const double> hashes) const {
  std::vector<std::string> names;
  for (const auto& unit : units_) names.push_back(unit->name());
  schedule_.compare(hashes, transport_, names);
}

void Course::set_gradients(Gradients gradients) {
  finish_backward();
  gradients_ = gradients;
}

void Course::set_gradients(const UnitState& unit, Gradients gradients) {
  finish_backward();
  for (const auto* group : unit.groups()) reducer_.set_gradients(group->index(), gradients);
}

void Course::entering_forward(UnitState& unit) {
  if (inside_backward()) {
    entering_backward();
    return;
  }
  if (backward_.under_way()) interrupt("an exception ended a backward");
  recover();
  if (at::GradMode::is_enabled()) schedule_.add(unit.index());
  order_.enter(unit.index(), units_.size());
}

void Course::unsharded(UnitState& unit, Pass pass) {
  const auto next = pass == Pass::forward ? order_.after(unit.index()) : order_.before(unit.index());
  if (next && (pass == Pass::forward || !all_gradients_seen(*units_[*next]))) units_[*next]->begin_unshard(pass);
}

void Course::leaving_forward(const UnitState& unit, const std::vector<at::Tensor>& outputs) {
  if (at::GradMode::is_enabled() && !inside_backward()) {
    if (!non_finite_ && !std::all_of(outputs.begin(), outputs.end(), is_finite))
      non_finite_ = {unit.index(), forwards_};
    ++forwards_;
  }
  // A write to shared memory counts for both: what has been told is not told again.
  try {
    store_.check_unwritten();
  } catch (const FaultError&) {
    for (auto* group : unit.groups()) group->accept_changes();
    throw;
  }
  for (auto* group : unit.groups()) group->check_unchanged();
}

void Course::entering_backward() {
  if (backward_.under_way()) return;
  if (!said_) said_.emplace(*this, "backward");
  recover();
  makes_graph_ = at::GradMode::is_enabled();
  first_of_backward_ = next_node();
  backward_.begin();
  events_.begin();
  reducer_.begin(gradients_);
  const auto still = [this, alive = std::weak_ptr(alive_), number = backward_.number()] {
    return alive.lock() && backward_.under_way() && backward_.number() == number;
  };
  at_end_of_backward(
      [this, still] {
        if (still()) run_in_backward([this] { finish_backward(); });
      },
      [this, still] {
        if (still()) events_.broken();
      });
}

bool Course::all_gradients_seen(const UnitState& unit) const {
  return std::all_of(unit.groups().begin(), unit.groups().end(), [&](const ParamGroup* group) {
    return reducer_.awaits_none(group->index()) || (backward_.under_way() && reducer_.complete(group->index()));
  });
}

void Course::accumulated(size_t g, size_t p) {
  entering_backward();
  if (reducer_.accumulated(g, p)) units_[unit_of_group_[g]]->maybe_reshard();
}

// Of a unit whose parameters stay where they are, nodes need not call for it.
void Course::made_nodes(NodeMark first, std::function<void()> reached, const std::vector<AutogradNode>& hooked) {
  if (lets_go_) node_ranges_.add(first, std::move(reached), hooked);
}

// Nothing says which of the second graph's nodes need which unit: any of them may need all that this backward has met.
void Course::keep_second_graph() {
  std::vector<std::weak_ptr<UnitState>> met;
  for (const auto& unit : units_)
    if (unit->met_in() == backward_.number()) met.push_back(unit);
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

void Course::expect_backward(const std::vector<at::Tensor>& roots) {
  if (!node_ranges_.empty()) node_ranges_.hook_entries(output_nodes(roots));
}

void Course::reduce_held() {
  finish_backward();
  reducer_.begin(Gradients::reduce);
  for (size_t g = 0; g < groups_.size(); ++g)
    for (size_t p = 0; p < groups_[g]->parameters().size(); ++p)
      if (groups_[g]->parameters()[p].grad().defined()) reducer_.accumulated(g, p);
  reducer_.finish();
}

void Course::finish_backward() {
  if (backward_.state() != Backward::State::running) return;
  backward_.end();
  if (makes_graph_) keep_second_graph();
  reducer_.finish();
  for (const auto& unit : units_) unit->end_backward();
  events_.end();
  backward_.ended();
  said_.reset();
}

void Course::interrupt(std::string_view cause) noexcept {
  transport_.abort(cause);
  drop_step();
}

void Course::drop_step() noexcept {
  backward_.drop();
  said_.reset();
  reducer_.abandon();
  schedule_.clear();
  forget_forwards();
  order_.forget();
  store_.drop();
  for (const auto& unit : units_) unit->interrupt();
}

void Course::forget_forwards() noexcept {
  forwards_ = 0;
  non_finite_.reset();
}

// The family may have recovered in a call of another model, whose exception this one need not have met: the ranks tell
// each other whether they were in the same place of this model's step, and only if not is it dropped.
bool Course::recover() {
  transport_.resume();
  if (recoveries_ == transport_.recoveries()) return false;
  recoveries_ = transport_.recoveries();
  const Progress mine{schedule_.hash(), interrupted()};
  const std::vector<Progress> all = transport_.exchange(mine, "how far a step was");
  const bool in_step = std::all_of(all.begin(), all.end(), [&](const Progress& theirs) {
    return !theirs.interrupted && theirs.schedule == mine.schedule;
  });
  // Ranks were interrupted at different places: prefetching by what each has seen would part their collectives.
  if (in_step) {
    order_.forget();
    for (const auto& group : groups_) group->abandon_unshard();
    return false;
  }
  if (!interrupted()) drop_step();
  store_.restart();
  backward_.recover();
  return true;
}

void Course::publish() {
  reducer_.start_window();
  schedule_.clear();
  forget_forwards();
  node_ranges_.clear();
  for (const auto& group : groups_) group->publish();
}

}  // namespace sherd
