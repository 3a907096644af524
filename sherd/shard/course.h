// What happens in a sharded model from a forward to the step: units open and close, backward begins and ends, what goes
// wrong is dropped and recovered from.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sherd/comm/transport.h"
#include "sherd/shard/backward.h"
#include "sherd/shard/forward_order.h"
#include "sherd/shard/node_ranges.h"
#include "sherd/shard/param_group.h"
#include "sherd/shard/reducer.h"
#include "sherd/shard/schedule.h"
#include "sherd/shard/store.h"
#include "sherd/shard/unit_state.h"

namespace sherd {

/// What a front end does around a backward.
struct BackwardEvents {
  std::function<void()> begin = [] {};   // before its first gradient
  std::function<void()> end = [] {};     // everything is reduced, or held
  std::function<void()> broken = [] {};  // an exception has ended it; must not throw
  /// Does the work on autograd's nodes, and may give its exceptions another type.
  std::function<void(const std::function<void()>& step)> run = [](const auto& step) { step(); };
};

class Course {
 public:
  using Groups = std::vector<std::unique_ptr<ParamGroup>>;
  /// The arguments outlive it.
  Course(Transport& transport, Store& store, Groups& groups, Reducer& reducer);
  /// In the order of the plan.
  UnitState& add_unit(std::string name, AfterForward after_forward, Activations activations);
  void assign(size_t group, size_t unit);
  const std::vector<std::shared_ptr<UnitState>>& units() const { return units_; }

  // What units tell, and ask.
  /// Does a step of the work that autograd's nodes call for.
  void run_in_backward(const std::function<void()>& step) { events_.run(step); }
  /// What the rank does from here on, for its peers; returns what it did.
  std::string_view say(std::string_view call) { return transport_.say(call); }
  /// A forward begins: nothing of an earlier, failed backward may be left.
  void entering_forward(UnitState& unit);
  /// The unit's parameters are there: the one that comes next is prefetched.
  void unsharded(UnitState& unit, Pass pass);
  /// A forward has made `outputs`: throws if it has changed a parameter that it may only read.
  void leaving_forward(const UnitState& unit, const std::vector<at::Tensor>& outputs);
  /// Backward has reached a unit or a parameter (many times a backward).
  void entering_backward();
  /// A number that is different in each backward.
  int64_t backward_number() const { return backward_.number(); }
  bool all_gradients_seen(const UnitState& unit) const;
  /// Nodes made since `first` belong to a forward of a unit; `hooked` of them call `reached` already.
  void made_nodes(NodeMark first, std::function<void()> reached, const std::vector<AutogradNode>& hooked);
  /// Parameter p of group g has a gradient in .grad.
  void accumulated(size_t g, size_t p);

  // What front ends do.
  /// For those that do not see backward() themselves.
  void observe_backward(BackwardEvents events) { events_ = std::move(events); }
  /// What the following backwards do with gradients; `reduce` until told otherwise.
  void set_gradients(Gradients gradients);
  Gradients gradients() const { return gradients_; }
  /// Of one unit: `hold`, whatever the others do, or as they do.
  void set_gradients(const UnitState& unit, Gradients gradients);
  /// Before a backward from these tensors: see [Note: Side doors]. Without it, what a unit has made must be reached by
  /// its forward's results.
  void expect_backward(const std::vector<at::Tensor>& roots);
  /// Ends the backward under way, if it has not ended by itself. Idempotent.
  void finish_backward();
  /// Outside of a backward: reduces what the whole parameters' .grad hold, as the end of one would. Collective.
  void reduce_held();
  /// After an exception in forward, backward or the exchange before an update: drops all gradients of this step and
  /// tells the other ranks, whose next wait throws with the cause. What they and this rank use next, of this model or
  /// another, starts with recover().
  void interrupt(std::string_view cause) noexcept;
  /// After an abort: waits for all ranks. Where one of them was interrupted in this model, makes everything ready for a
  /// new step from the parameters of the last one, and returns true. Collective; else nothing.
  bool recover();
  /// Whether this rank's step was interrupted, and nothing has recovered since.
  bool interrupted() const { return backward_.state() == Backward::State::dropped; }
  /// After the update: publishes every group and starts a new window of rounds.
  void publish();

  /// This rank's schedule since the last publish(), and what compares it.
  double schedule_hash() const { return schedule_.hash(); }
  void compare_schedules(std::span<const double> hashes) const;
  /// A step is over for the comparison of schedules.
  void forget_schedule() { schedule_.clear(); }
  /// The unit whose output was the first of this step that was not finite, and how many forwards came before it.
  struct NonFinite {
    size_t unit = 0;  // of units()
    int64_t forward = 0;
  };
  const std::optional<NonFinite>& first_non_finite() const { return non_finite_; }

 private:
  void keep_second_graph();
  void forget_forwards() noexcept;
  void drop_step() noexcept;

  Transport& transport_;
  Store& store_;
  Groups& groups_;
  Reducer& reducer_;
  std::vector<std::shared_ptr<UnitState>> units_;
  std::vector<size_t> unit_of_group_;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);

  bool lets_go_ = false;  // any group, of its whole parameters
  NodeRanges node_ranges_;
  Schedule schedule_;
  ForwardOrder order_;
  int64_t forwards_ = 0;  // of units, with gradients, in this step
  std::optional<NonFinite> non_finite_;

  Gradients gradients_ = Gradients::reduce;
  BackwardEvents events_;
  Backward backward_;
  std::optional<Said> said_;         // in backward
  bool makes_graph_ = false;         // the backward under way (create_graph)
  NodeMark first_of_backward_ = {};  // of that graph
  uint64_t recoveries_ = 0;          // of the transport, that this model has followed
};

}  // namespace sherd
