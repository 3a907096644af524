#include "python/src/unit.h"

#include "python/src/model.h"
#include "python/src/objects.h"
#include "sherd/shard/hooks.h"

namespace sherd::python {

void Unit::belong_to(Model* model) {
  model_ = model;
  if (model_ != nullptr) return state_->set_face(this);
  if (state_) state_->set_face(nullptr);
  show_shards();
  scopes_.clear();
  places_.clear();
}

void Unit::enter(const py::tuple& args, const py::dict& kwargs) {
  std::vector<at::Tensor> tensors;
  collect_tensors(args.ptr(), tensors);
  collect_tensors(kwargs.ptr(), tensors);
  const py::gil_scoped_release no_gil;
  try {
    model_->entering_forward();
    model_->entering_unit(*state_);
    scopes_.push_back(std::make_unique<ForwardScope>(state_.get(), tensors));
  } catch (const std::exception& error) {
    model_->failed_in_forward(error.what());
    throw;
  }
  model_->count_open(1);
}

void Unit::leave(const py::object& result) {
  std::vector<at::Tensor> tensors;
  collect_tensors(result.ptr(), tensors);
  const py::gil_scoped_release no_gil;
  const auto scope = std::move(scopes_.back());
  scopes_.pop_back();
  model_->count_open(-1);
  try {
    scope->finish(tensors);
  } catch (const std::exception& error) {
    model_->failed_in_forward(error.what());
    throw;
  }
}

void Unit::fail(const std::string& cause) {
  const py::gil_scoped_release no_gil;
  scopes_.pop_back();
  model_->count_open(-1);
  // torch's checkpointing ends a recomputed forward by an exception when it has what it wants.
  if (!inside_backward()) model_->failed_in_forward(cause);
}

void Unit::unshard() {
  const py::gil_scoped_release no_gil;
  model_->entering_forward();
  state_->unshard();
}

void Unit::reshard() {
  const py::gil_scoped_release no_gil;
  state_->reshard();
}

void Unit::set_after_forward(AfterForward after_forward) { state_->set_after_forward(after_forward); }

void Unit::set_prefetch(Pass pass, const std::vector<std::shared_ptr<Unit>>& units) {
  std::vector<std::weak_ptr<UnitState>> states;
  for (const auto& unit : units) states.push_back(unit->state_);
  state_->set_prefetch(pass, std::move(states));
}

void Unit::show_whole() { show(true); }

void Unit::show_shards() noexcept { show(false); }

void Unit::show(bool whole) {
  if (whole_shown_ == whole) return;
  const py::gil_scoped_acquire gil;
  for (const Place& place : places_)
    PyDict_SetItem(place.parameters.ptr(), place.name.ptr(), (whole ? place.whole : place.shard).ptr());
  whole_shown_ = whole;
}

}  // namespace sherd::python
