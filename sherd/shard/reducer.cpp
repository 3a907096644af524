#include "sherd/shard/reducer.h"

#include <algorithm>

#include "sherd/base/error.h"

namespace sherd {

Reducer::Reducer(Store& store, std::vector<ParamGroup*> groups, std::vector<size_t> order, Spread gradients)
    : store_(store),
      groups_(std::move(groups)),
      all_in_order_(std::move(order)),
      spread_(gradients),
      entries_(groups_.size()) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    entries_[g].deposited.assign(groups_[g]->parameters().size(), 0);
    entries_[g].seen.assign(groups_[g]->parameters().size(), 0);
    entries_[g].given.assign(groups_[g]->parameters().size(), 0);
  }
  follow_roles();
}

void Reducer::follow_roles() {
  order_.clear();
  std::copy_if(all_in_order_.begin(), all_in_order_.end(), std::back_inserter(order_),
               [this](size_t g) { return groups_[g]->takes_part(); });
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Roles& roles = groups_[g]->roles();
    entries_[g].awaited = static_cast<size_t>(std::count(roles.begin(), roles.end(), Role::awaited));
  }
}

void Reducer::begin(Gradients gradients) {
  gradients_ = gradients;
  store_.set_reach(gradients == Gradients::reduce_shard_axis ? Reach::shard_axis : Reach::all);
  next_ = 0;
  for (size_t g = 0; g < entries_.size(); ++g) {
    Entry& entry = entries_[g];
    std::fill(entry.seen.begin(), entry.seen.end(), 0);
    if (!store_.keeps_back(g)) std::fill(entry.given.begin(), entry.given.end(), 0);
    entry.seen_count = 0;
    entry.contributed = false;
    entry.complete = entry.awaited == 0;
  }
}

bool Reducer::accumulated(size_t g, size_t p) {
  Entry& entry = entries_[g];
  if (groups_[g]->roles()[p] != Role::awaited) return false;
  bool last = false;
  if (!entry.seen[p]) {
    entry.seen[p] = 1;
    last = ++entry.seen_count == entry.awaited;
    entry.complete = last || entry.complete;
  }
  if (gradients_ == Gradients::hold || holds(g)) return last;
  if (entry.contributed) return last;  // Late: one more round at the end.
  if (!entry.slot.defined() && may_open(g)) open(g);
  if (entry.slot.defined()) deposit_waiting(g);
  if (last) advance();
  return last;
}

// Only the next group in order takes a slot of the ring: the ring can then never be full of groups that wait for it.
// Where whole gradients are held, each group has a slot of its own.
bool Reducer::may_open(size_t g) const {
  return spread_ == Spread::whole || (next_ < order_.size() && order_[next_] == g);
}

void Reducer::open(size_t g) {
  while (store_.slot_blocked_by(g) >= 0) reduce_oldest(Patience::wait);
  entries_[g].slot = store_.open_slot(g);
  std::fill(entries_[g].deposited.begin(), entries_[g].deposited.end(), 0);
}

void Reducer::deposit(size_t g, size_t p) {
  Entry& entry = entries_[g];
  const ParamGroup& group = *groups_[g];
  const auto& layout = group.gradient_layout();
  const auto& parameter = layout.parameters[p];
  at::Tensor& held = group.parameters()[p].mutable_grad();
  TORCH_CHECK(held.layout() == at::kStrided && held.scalar_type() == group.compute_type(), "[shard] got a ",
              held.layout(), " ", held.scalar_type(), " gradient for '", parameter.fqn, "', expected a dense one of ",
              group.compute_type(), "; try a layer without sparse gradients");
  const at::Tensor gradient = held.detach().contiguous().view(-1);
  for (int r = 0; r < layout.ranks; ++r) {
    const Rows rows = layout.rows(p, r);
    const int64_t count = rows.count * parameter.row_elements;
    if (count == 0) continue;
    const int64_t first = parameter.copies == Copies::one ? rows.first * parameter.row_elements : 0;
    const at::Tensor from = gradient.narrow(0, first, count);
    const at::Tensor to = entry.slot.narrow(0, r * layout.shard_elements + parameter.shard_offset, count);
    if (entry.deposited[p]) {
      to.add_(from);
    } else {
      to.copy_(from);
    }
  }
  entry.deposited[p] = entry.given[p] = 1;
  held.reset();
}

void Reducer::deposit_waiting(size_t g) {
  const c10::InferenceMode guard(false);
  const at::NoGradGuard no_grad;
  const auto& parameters = groups_[g]->parameters();
  for (size_t p = 0; p < parameters.size(); ++p)
    if (parameters[p].grad().defined()) deposit(g, p);
}

bool Reducer::has_waiting(size_t g) const {
  for (const auto& parameter : groups_[g]->parameters())
    if (parameter.grad().defined()) return true;
  return false;
}

void Reducer::contribute(size_t g) {
  Entry& entry = entries_[g];
  const auto under_way = std::count(pending_.begin(), pending_.end(), g);
  TORCH_CHECK(entry.rounds + under_way < most_rounds_, "[shard] got a second reduction of unit '",
              groups_[g]->layout().unit,
              "' in one step, expected one; try Summing::apart, or Gradients::hold in all but ", "the last backward");
  if (!entry.slot.defined()) open(g);
  deposit_waiting(g);
  const auto& layout = groups_[g]->gradient_layout();
  for (size_t p = 0; p < layout.parameters.size(); ++p) {
    if (entry.deposited[p]) continue;
    for (int r = 0; r < layout.ranks; ++r) {
      const int64_t count = layout.rows(p, r).count * layout.parameters[p].row_elements;
      if (count > 0) entry.slot.narrow(0, r * layout.shard_elements + layout.parameters[p].shard_offset, count).zero_();
    }
  }
  entry.slot.reset();
  entry.contributed = true;
  while (pending_.size() >= kInFlight) reduce_oldest(Patience::wait);
  store_.contribute(g);
  pending_.push_back(g);
}

// False if that would have to wait.
bool Reducer::reduce_oldest(Patience patience) {
  SHERD_CHECK(!pending_.empty());
  const size_t g = pending_.front();
  if (!store_.reduce(g, entries_[g].rounds == 0 ? Round::first : Round::later, patience)) return false;
  if (!store_.keeps_back(g)) ++entries_[g].rounds;
  pending_.pop_front();
  return true;
}

void Reducer::advance() {
  for (; next_ < order_.size() && (holds(order_[next_]) || entries_[order_[next_]].complete); ++next_)
    if (!holds(order_[next_])) contribute(order_[next_]);
  while (!pending_.empty() && reduce_oldest(Patience::now_or_not)) {
  }
  if (next_ < order_.size() && has_waiting(order_[next_])) {
    const size_t g = order_[next_];
    if (!entries_[g].slot.defined()) open(g);
    deposit_waiting(g);
  }
}

void Reducer::finish() {
  if (gradients_ == Gradients::hold) return;
  for (; next_ < order_.size(); ++next_)
    if (!holds(order_[next_])) contribute(order_[next_]);
  for (const size_t g : order_)
    if (!holds(g) && has_waiting(g)) contribute(g);
  while (!pending_.empty()) reduce_oldest(Patience::wait);
  store_.finish_round();
}

void Reducer::start_window() {
  for (auto& entry : entries_) entry.rounds = 0;
}

void Reducer::abandon() noexcept {
  pending_.clear();
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (const auto& parameter : groups_[g]->parameters()) parameter.mutable_grad().reset();
    entries_[g].slot.reset();
  }
  start_window();
}

}  // namespace sherd
