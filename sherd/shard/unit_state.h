// What a unit does around its forward and backward: unshard before, reshard after.
//
// [Note: Reshard in backward] A unit's parameters are needed until (1) all its gradients are there and (2) the
// producers of its inputs have started, for every forward whose backward has begun: only then has nothing of the unit's
// own graph still to run. Whatever is missed is made up at the end of backward: parts of the graph that do not run, and
// units without inputs that need gradients, which come last anyway (a gradient of theirs may be there before all their
// uses are done, where those are recomputed). A forward inside backward (recompute) never reshards.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sherd/shard/hooks.h"
#include "sherd/shard/layout.h"
#include "sherd/shard/node_ranges.h"
#include "sherd/shard/param_group.h"

namespace sherd {

class Course;
class UnitState;
enum class Pass { forward, backward };

/// The rank is in a call for as long as this lives.
class Said {
 public:
  Said(Course& course, std::string_view call);
  Said(const Said&) = delete;
  Said& operator=(const Said&) = delete;
  ~Said();

 private:
  Course& course_;
  std::string_view before_;
};

/// What shows a unit's parameters to its module, where that has two faces of them: whole ones inside the unit's forward
/// and backward, this rank's shards elsewhere. Calls may come twice.
class UnitFace {
 public:
  virtual ~UnitFace() = default;
  virtual void show_whole() = 0;
  virtual void show_shards() noexcept = 0;
};

enum class AfterForward {
  reshard,
  keep,  // whole, but not shown: the module has shards again
  show,  // whole and shown
};
enum class InBackward {
  unshard,
  leave,  // nothing in its backward needs parameters: an embedding's
};
enum class AfterBackward {
  reshard,
  keep,  // whole, but not shown, until the next forward or update
};
enum class Activations { keep, recompute };

class UnitState : public std::enable_shared_from_this<UnitState> {
 public:
  UnitState(Course& course, std::string name, size_t index, AfterForward after_forward, Activations activations)
      : course_(course),
        name_(std::move(name)),
        forward_("the forward of " + title_of_unit(name_)),
        index_(index),
        after_forward_(after_forward),
        activations_(activations) {}

  const std::string& name() const { return name_; }
  /// What its forward is called.
  std::string_view forward() const { return forward_; }
  size_t index() const { return index_; }
  Activations activations() const { return activations_; }
  int64_t met_in() const { return met_in_; }
  std::vector<ParamGroup*>& groups() { return groups_; }
  const std::vector<ParamGroup*>& groups() const { return groups_; }

  /// `face` outlives the state, or is taken back with null.
  void set_face(UnitFace* face) { face_ = face; }
  void set_after_forward(AfterForward after_forward) { after_forward_ = after_forward; }
  void set_in_backward(InBackward in_backward) { in_backward_ = in_backward; }
  void set_after_backward(AfterBackward after_backward) { after_backward_ = after_backward; }
  /// Which units to unshard while this one runs, in the place of the one that came next the last time. Empty: that one.
  void set_prefetch(Pass pass, std::vector<std::weak_ptr<UnitState>> units) { prefetch(pass) = std::move(units); }

  void begin_unshard(Pass pass);
  void unshard();
  /// At a user's word: stays shown too until the next backward has ended, where the memory stays.
  void unshard_by_hand();
  void reshard();
  /// Reshards if [Note: Reshard in backward] allows it.
  void maybe_reshard();
  /// Unshards until the end of the backward under way, whatever else comes to an end in it.
  void unshard_until_end();
  /// Everything that backward has left open is closed.
  void end_backward();
  /// The same after a fault, with a store that has dropped what was under way.
  void interrupt() noexcept;

 private:
  friend class ForwardScope;
  struct ForwardRecord;  // one forward with gradients: how many producers of its inputs have yet to start
  void show_shards() noexcept;
  std::vector<std::weak_ptr<UnitState>>& prefetch(Pass pass) {
    return pass == Pass::forward ? prefetch_in_forward_ : prefetch_in_backward_;
  }
  void begin_next(Pass pass);
  void pass_backward();
  void output_reached(ForwardRecord& record);
  void producer_reached(ForwardRecord& record);

  Course& course_;
  std::string name_, forward_;  // its name, and what its forward is called
  size_t index_;
  AfterForward after_forward_;
  InBackward in_backward_ = InBackward::unshard;
  AfterBackward after_backward_ = AfterBackward::reshard;
  Activations activations_;
  UnitFace* face_ = nullptr;
  std::vector<ParamGroup*> groups_;
  std::vector<std::weak_ptr<UnitState>> prefetch_in_forward_, prefetch_in_backward_;
  int open_ = 0;         // forwards that have begun and not ended
  int active_ = 0;       // forwards whose backward has begun and whose producers have not all started
  int64_t met_in_ = -1;  // the last backward that called for it
  bool until_end_ = false, by_hand_ = false;
  int64_t passed_ = -1;  // the backward in which the producers of some forward have all started
};

/// Throws FaultError naming the unit if `error` is what torch says of a write to read-only parameters; else returns.
void explain_write(const c10::Error& error, const UnitState* unit);

/// Around one forward of a unit: unshards at once; finish() with the outputs installs the hooks. Destroyed without
/// finish() (an exception in forward), it only reshards. A null state does nothing at all. Inputs that the forward has
/// changed in place are outputs too.
class ForwardScope {
 public:
  ForwardScope(UnitState* unit, const std::vector<at::Tensor>& inputs);
  ForwardScope(const ForwardScope&) = delete;
  ForwardScope& operator=(const ForwardScope&) = delete;
  ~ForwardScope();
  void finish(const std::vector<at::Tensor>& outputs);

 private:
  UnitState* unit_;
  struct Input {
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor;  // a forward may let go of it early
    AutogradNode producer;
  };
  void add_changed_inputs(std::vector<AutogradNode>& nodes) const;

  std::optional<Said> said_;
  std::vector<Input> inputs_;
  std::vector<AutogradNode> producers_;
  NodeMark first_node_ = {};
};

}  // namespace sherd
