#include "sherd/shard/unit_state.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/shard/course.h"

namespace sherd {
namespace {

// torch.func's transforms take whatever runs inside of them for a part of the function; fetching parameters is none.
using OutsideOfTransforms = c10::impl::ExcludeDispatchKeyGuard;
constexpr c10::DispatchKeySet kTransforms{c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                          c10::DispatchKey::FuncTorchDynamicLayerBackMode};

}  // namespace

Said::Said(Course& course, std::string_view call) : course_(course), before_(course.say(call)) {}

Said::~Said() { course_.say(before_); }

struct UnitState::ForwardRecord {
  int64_t backward = -1;  // the backward in which it is active
  size_t producers = 0;   // of its inputs, in all
  size_t reached = 0;     // of them, in that backward
};

void UnitState::begin_unshard(Pass pass) {
  if (pass == Pass::backward && in_backward_ == InBackward::leave) return;
  const OutsideOfTransforms guard(kTransforms);
  for (auto* group : groups_) group->begin_unshard();
}

void UnitState::unshard() {
  const OutsideOfTransforms guard(kTransforms);
  for (auto* group : groups_) group->begin_unshard();
  for (auto* group : groups_) group->unshard();
  if (face_ != nullptr) face_->show_whole();
}

// The user's choice, or what the model has learnt.
void UnitState::begin_next(Pass pass) {
  const auto& chosen = prefetch(pass);
  if (chosen.empty()) return course_.unsharded(*this, pass);
  for (const auto& weak : chosen) {
    const auto unit = weak.lock();
    if (unit && (pass == Pass::forward || !course_.all_gradients_seen(*unit))) unit->begin_unshard(pass);
  }
}

void UnitState::show_shards() noexcept {
  if (face_ != nullptr) face_->show_shards();
}

void UnitState::unshard_by_hand() {
  by_hand_ = true;
  unshard();
}

void UnitState::reshard() {
  by_hand_ = false;
  show_shards();
  for (auto* group : groups_) group->reshard();
}

void UnitState::unshard_until_end() {
  met_in_ = course_.backward_number();
  until_end_ = true;
  unshard();
}

void UnitState::maybe_reshard() {
  if (until_end_) return;
  const bool passed = active_ == 0 && passed_ == course_.backward_number();
  if (passed && course_.all_gradients_seen(*this)) pass_backward();
}

void UnitState::pass_backward() {
  if (after_backward_ == AfterBackward::reshard) return reshard();
  by_hand_ = false;
  show_shards();
}

void UnitState::end_backward() {
  active_ = 0;
  until_end_ = false;
  pass_backward();
}

void UnitState::interrupt() noexcept {
  active_ = 0;
  until_end_ = by_hand_ = false;
  show_shards();
  for (auto* group : groups_) group->interrupt();
}

void UnitState::output_reached(ForwardRecord& record) {
  course_.entering_backward();
  met_in_ = course_.backward_number();
  if (in_backward_ == InBackward::unshard) unshard();
  begin_next(Pass::backward);
  if (record.producers == 0 || record.backward == course_.backward_number()) return;
  record.backward = course_.backward_number();
  record.reached = 0;
  ++active_;
}

void UnitState::producer_reached(ForwardRecord& record) {
  if (record.backward != course_.backward_number() || ++record.reached != record.producers) return;
  --active_;
  passed_ = record.backward;
  maybe_reshard();
}

void explain_write(const c10::Error& error, const UnitState* unit) {
  constexpr std::string_view kWrite = "Cannot access data pointer of Tensor (e.g. FakeTensor";
  if (unit == nullptr || std::string_view(error.what()).find(kWrite) == std::string_view::npos) return;
  std::string parameters;
  for (const auto* group : unit->groups())
    for (const auto& parameter : group->layout().parameters)
      parameters += (parameters.empty() ? "'" : ", '") + parameter.fqn + "'";
  fault(
      "shard",
      "got a write in place to a parameter of {} (one of {}) in its forward, expected reads: all ranks of a host share "
      "it; try a copy of it, or in C++ EngineOptions::writing_units with its name",
      title_of_unit(unit->name()), parameters);
}

ForwardScope::ForwardScope(UnitState* unit, const std::vector<at::Tensor>& inputs) : unit_(unit) {
  if (unit_ == nullptr) return;
  said_.emplace(unit_->course_, unit_->forward());
  unit_->course_.entering_forward(*unit_);
  if (at::GradMode::is_enabled()) {
    first_node_ = next_node();
    producers_ = producer_nodes(inputs);
    for (const at::Tensor& input : inputs)
      if (input.defined()) inputs_.push_back({decltype(Input::tensor)(input.getIntrusivePtr()), input.grad_fn()});
  }
  unit_->unshard();
  if (!inside_backward()) unit_->begin_next(Pass::forward);
  ++unit_->open_;
}

void ForwardScope::finish(const std::vector<at::Tensor>& outputs) {
  if (unit_ == nullptr) return;
  unit_->course_.leaving_forward(*unit_, outputs);
  UnitState& unit = *std::exchange(unit_, nullptr);
  const bool nested = --unit.open_ > 0;
  const bool with_gradients = at::GradMode::is_enabled();
  std::vector<AutogradNode> nodes = with_gradients ? output_nodes(outputs) : std::vector<AutogradNode>();
  if (with_gradients) add_changed_inputs(nodes);
  if (with_gradients) {
    auto record = std::make_shared<UnitState::ForwardRecord>();
    record->producers = producers_.size();
    // The graph may outlive the unit.
    const std::weak_ptr<UnitState> weak = unit.weak_from_this();
    const std::function<void()> reached = [weak, record] {
      if (const auto state = weak.lock()) state->course_.run_in_backward([&] { state->output_reached(*record); });
    };
    for (const auto& node : nodes) before_node(*node, reached);
    unit.course_.made_nodes(first_node_, reached, nodes);
    for (const auto& node : producers_)
      before_node(*node, [weak, record] {
        if (const auto state = weak.lock()) state->course_.run_in_backward([&] { state->producer_reached(*record); });
      });
  }
  if (inside_backward() || nested) return;
  if (unit.after_forward_ == AfterForward::reshard || nodes.empty()) return unit.reshard();
  if (unit.after_forward_ == AfterForward::keep && !unit.by_hand_) unit.show_shards();
}

void ForwardScope::add_changed_inputs(std::vector<AutogradNode>& nodes) const {
  for (const Input& input : inputs_) {
    const auto alive = input.tensor.lock();
    if (alive.get() == c10::UndefinedTensorImpl::singleton()) continue;
    const at::Tensor tensor(alive);
    if (tensor.grad_fn() == input.producer) continue;
    for (const auto& node : output_nodes({tensor}))
      if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
  }
}

ForwardScope::~ForwardScope() {
  if (unit_ == nullptr || --unit_->open_ > 0 || inside_backward()) return;
  try {
    unit_->reshard();
  } catch (...) {  // A gather that failed: the exception under way says more.
  }
}

}  // namespace sherd
