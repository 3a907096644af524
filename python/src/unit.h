// A unit of a Python model: what its __call__ does before and after the module's own.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string>
#include <vector>

#include "sherd/shard/reducer.h"
#include "sherd/shard/unit.h"

namespace sherd::python {

class Model;

/// A place in a module where a parameter of the unit is seen: module._parameters[name] is `whole` inside the unit's
/// forward and backward, and `shard` (a DTensor) elsewhere. A tied parameter has several. What somebody else has put
/// there (torch.func.functional_call) stays, and is computed with.
struct Place {
  py::dict parameters;
  py::str name;
  py::object whole, shard;
};

class Unit : public UnitBase, public UnitFace {
 public:
  explicit Unit(std::vector<Place> places) : places_(std::move(places)) {}
  /// Also without the interpreter's lock: a tensor may be the last that holds a model's memory.
  ~Unit() override;
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;

  /// Called by the model that this unit is of, and once more with null before that is gone.
  void belong_to(Model* model);

  /// Around one forward: enter, then leave with what it returned, or fail with why it did not. Throw
  /// FaultError where a peer is gone or a parameter was changed in place.
  void enter(const py::tuple& args, const py::dict& kwargs);
  void leave(const py::object& result);
  void fail(const std::string& cause);

  /// By hand: whole parameters from here on, and shards again.
  void unshard();
  void reshard();
  void set_after_forward(AfterForward after_forward) { state_->set_after_forward(after_forward); }
  /// `hold`: following backwards leave its gradients on this rank, whatever other units' do.
  void set_gradients(Gradients gradients);
  void set_in_backward(InBackward in_backward) { state_->set_in_backward(in_backward); }
  void set_after_backward(AfterBackward after_backward) { state_->set_after_backward(after_backward); }
  /// What the sums of its gradients are divided by.
  void set_divisor(double divisor);
  /// Is given the reduced gradients of a group at the end of a backward, this rank's rows in one tensor, and may change
  /// them. None: nothing.
  void set_reduced_hook(const py::object& hook) { reduced_hook_ = hook; }
  const py::object& reduced_hook() const { return reduced_hook_; }
  const std::vector<ParamGroup*>& groups() const { return state_->groups(); }
  /// Which units to unshard while this one runs. Empty: the one that came next the last time.
  void set_prefetch(Pass pass, const std::vector<std::shared_ptr<Unit>>& units);

  bool shows_whole() const { return whole_shown_; }
  void show_whole() override;
  void show_shards() noexcept override;

 private:
  /// What stood in a place instead of the parameter, and the whole value that stands there meanwhile.
  struct Guest {
    size_t place;
    py::object given, whole;
  };
  void receive(size_t place, const py::object& given);
  void send_home() noexcept;

  Model* model_ = nullptr;
  std::vector<Place> places_;
  std::vector<Guest> guests_;
  py::object reduced_hook_ = py::none();
  bool whole_shown_ = false;
  std::vector<std::unique_ptr<ForwardScope>> scopes_;  // forwards under way, the innermost last
};

}  // namespace sherd::python
