#include "python/src/unit.h"

#include "python/src/model.h"
#include "python/src/objects.h"
#include "sherd/shard/hooks.h"

namespace sherd::python {

Unit::~Unit() {
  const py::gil_scoped_acquire gil;
  reduced_hook_ = py::object();
  guests_.clear();
  places_.clear();
}

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
    model_->entering_forward(*state_);
    scopes_.push_back(std::make_unique<ForwardScope>(state_.get(), tensors));
  } catch (const std::exception& error) {
    model_->failed_in_forward(state_->name(), error.what());
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
    model_->failed_in_forward(state_->name(), error.what());
    throw;
  }
}

void Unit::fail(const std::string& cause) {
  const py::gil_scoped_release no_gil;
  scopes_.pop_back();
  model_->count_open(-1);
  // torch's checkpointing ends a recomputed forward by an exception when it has what it wants.
  if (!inside_backward()) model_->failed_in_forward(state_->name(), cause);
}

void Unit::unshard() {
  const py::gil_scoped_release no_gil;
  model_->entering_forward();
  state_->unshard_by_hand();
}

void Unit::reshard() {
  const py::gil_scoped_release no_gil;
  state_->reshard();
}

void Unit::set_gradients(Gradients gradients) { model_->set_gradients(*state_, gradients); }

void Unit::set_divisor(double divisor) {
  for (const auto* group : groups()) model_->set_divisor(group->index(), divisor);
}

void Unit::set_prefetch(Pass pass, const std::vector<std::shared_ptr<Unit>>& units) {
  std::vector<std::weak_ptr<UnitState>> states;
  for (const auto& unit : units) states.push_back(unit->state_);
  state_->set_prefetch(pass, std::move(states));
}

void Unit::show_whole() {
  if (whole_shown_) return;
  const py::gil_scoped_acquire gil;
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    PyObject* now = PyDict_GetItemWithError(place.parameters.ptr(), place.name.ptr());
    if (now == place.shard.ptr()) {
      PyDict_SetItem(place.parameters.ptr(), place.name.ptr(), place.whole.ptr());
    } else if (now != nullptr && now != place.whole.ptr()) {
      receive(i, py::reinterpret_borrow<py::object>(now));
    }
  }
  whole_shown_ = true;
}

void Unit::show_shards() noexcept {
  if (!whole_shown_) return;
  const py::gil_scoped_acquire gil;
  send_home();
  for (const Place& place : places_)
    if (PyDict_GetItemWithError(place.parameters.ptr(), place.name.ptr()) == place.whole.ptr())
      PyDict_SetItem(place.parameters.ptr(), place.name.ptr(), place.shard.ptr());
  whole_shown_ = false;
}

void Unit::receive(size_t i, const py::object& given) {
  const Place& place = places_[i];
  const py::object whole = py::module_::import("sherd.parameters").attr("whole_guest")(given, place.shard);
  if (whole.is(given)) return;
  PyDict_SetItem(place.parameters.ptr(), place.name.ptr(), whole.ptr());
  guests_.push_back({i, given, whole});
}

void Unit::send_home() noexcept {
  for (const Guest& guest : guests_) {
    const Place& place = places_[guest.place];
    if (PyDict_GetItemWithError(place.parameters.ptr(), place.name.ptr()) == guest.whole.ptr())
      PyDict_SetItem(place.parameters.ptr(), place.name.ptr(), guest.given.ptr());
  }
  guests_.clear();
}

}  // namespace sherd::python
