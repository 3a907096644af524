// A model under a strategy: its units, their groups, and what happens between a forward and the step.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sherd/base/parameter_source.h"
#include "sherd/comm/mesh.h"
#include "sherd/comm/transport.h"
#include "sherd/memory/ledger.h"
#include "sherd/recompute/recompute_policy.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/param_group.h"
#include "sherd/shard/reducer.h"
#include "sherd/shard/schedule.h"
#include "sherd/shard/store.h"
#include "sherd/shard/strategy.h"
#include "sherd/shard/unit.h"
#include "sherd/shard/unit_policy.h"
#include "sherd/shard/unit_state.h"

namespace sherd {

/// What a parameter is beside the type of its tensor, which is computed with. Types that differ are grouped apart.
struct ParameterTypes {
  at::ScalarType storage, reduce;
  Copies copies = Copies::one;
};

struct ShardOptions {
  Strategy strategy;
  ReshardPolicy reshard_after_forward = ReshardPolicy::units;
  Summing summing = Summing::apart;
  at::Device device = at::kCPU;
  UnitPolicy units = {};                        // which units are sharded on their own; all of them
  RecomputePolicy recompute = {};               // whose activations are made again in backward; none
  std::vector<std::string> writing_units = {};  // globs: units that change their parameters in forward
  Access access = Access::read;                 // of all other units
  int64_t persistent_below = 0;                 // bytes: smaller groups stay whole on every rank
  Mesh mesh = {};                               // hsdp: replicate x shard ranks; else one row of all ranks
  std::function<ParameterTypes(const FoundParameter&)> types = {};  // empty: stored as computed with, reduced as summed
};

/// What a front end does around a backward.
struct BackwardEvents {
  std::function<void()> begin = [] {};   // before its first gradient
  std::function<void()> end = [] {};     // everything is reduced, or held
  std::function<void()> broken = [] {};  // an exception has ended it; must not throw
  /// Does the work on autograd's nodes, and may give its exceptions another type.
  std::function<void(const std::function<void()>& step)> run = [](const auto& step) { step(); };
};

class ShardedModel : public UnitObserver {
 public:
  /// Takes over the parameters of `units`, the root first; they point to the model's modules, which outlive it as do
  /// `transport` and `ledger`.
  ShardedModel(std::vector<FoundUnit> units, Transport& transport, Ledger& ledger, ShardOptions options);
  /// Takes over the parameters of `root` (their values are lost: fill() gives new ones). Collective. `root`,
  /// `transport` and `ledger` outlive it. Throws ConfigError for parameters that cannot be sharded.
  ShardedModel(std::shared_ptr<torch::nn::Module> root, Transport& transport, Ledger& ledger, ShardOptions options);
  ~ShardedModel() override;

  /// Takes fp32 values of a parameter's rows of the o-th of the store's owned(): [rows * row_elements].
  using SetRows = std::function<void(size_t g, size_t p, size_t o, const at::Tensor& values)>;
  /// First values: each rank asks for the rows it owns, and hands them to `set`. Collective.
  void fill(const ParameterSource& source, const SetRows& set);
  /// The same without anything that rows are rounded from.
  void fill(const ParameterSource& source);

  /// Whether anything was reduced into group g since the last publish().
  bool has_gradients(size_t g) const { return reducer_->rounds(g) > 0; }

  /// What is allowed, but perhaps not meant: one unit that holds most of the model.
  const std::vector<std::string>& warnings() const { return warnings_; }
  /// This rank's schedule since the last publish(), and what compares it.
  double schedule_hash() const { return schedule_.hash(); }
  void compare_schedules(std::span<const double> hashes) const;

  UnitState& root_unit() { return *units_.front(); }
  /// The root first, then in the order of the module tree.
  const std::vector<std::shared_ptr<UnitState>>& units() const { return units_; }
  Store& store() { return *store_; }
  Transport& transport() { return transport_; }
  /// The ranks that rows are spread over.
  Transport& shard_transport() { return *shard_transport_; }
  const std::vector<std::unique_ptr<ParamGroup>>& groups() const { return groups_; }

  /// The reduced gradient of a parameter's rows of the o-th of the store's owned(): [rows * row_elements].
  at::Tensor gradient_rows(size_t g, size_t p, size_t o);

  /// For front ends that do not see backward() themselves.
  void observe_backward(BackwardEvents events) { events_ = std::move(events); }
  /// The gradients of group g that are there count no more: the next reduction overwrites them.
  void forget_gradients(size_t g) { reducer_->start_window(g); }
  /// The opposite: the next reduction adds to what store().gradient(g) holds.
  void keep_gradients(size_t g) { reducer_->keep_window(g); }
  /// Outside of a backward: reduces what the whole parameters' .grad hold, as the end of one would. Collective.
  void reduce_held();
  /// Whether any gradient of parameter p of group g is in what was reduced last.
  bool has_seen(size_t g, size_t p) const { return reducer_->given(g, p); }
  /// The unit whose output was the first of this step that was not finite, and how many forwards came before it.
  struct NonFinite {
    size_t unit = 0;  // of units()
    int64_t forward = 0;
  };
  const std::optional<NonFinite>& first_non_finite() const { return non_finite_; }
  /// A step is over for the comparison of schedules.
  void forget_schedule() { schedule_.clear(); }

  /// Other roles of parameters, by group; at first those that require gradients are awaited, the others frozen.
  /// Between backwards or in BackwardEvents::begin, the same on all ranks; collective. Returns the groups whose
  /// gradients have moved: see Store::set_roles.
  std::vector<size_t> set_roles(const std::vector<Roles>& roles);
  /// Throws ConfigError naming a parameter whose requires_grad is not what its role says.
  void check_roles() const;
  /// What the following backwards do with gradients; `reduce` until told otherwise.
  void set_gradients(Gradients gradients);
  Gradients gradients() const { return gradients_; }
  /// Of one unit: `hold`, whatever the others do, or as they do.
  void set_gradients(const UnitState& unit, Gradients gradients);
  /// Whether group g's are held by that.
  bool holds(size_t g) const { return reducer_->holds(g); }
  /// Before a backward from these tensors: see [Note: Side doors]. Without it, what a unit has made must be reached by
  /// its forward's results.
  void expect_backward(const std::vector<at::Tensor>& roots);
  /// Ends the backward under way, if it has not ended by itself. Idempotent.
  void finish_backward();
  /// After an exception in forward, backward or the exchange before an update: drops all gradients of this step and
  /// tells the other ranks, whose next wait throws with the cause. What they and this rank use next, of this model or
  /// another, starts with recover().
  void interrupt(std::string_view cause) noexcept;
  /// After an abort: waits for all ranks. Where one of them was interrupted in this model, makes everything ready for a
  /// new step from the parameters of the last one, and returns true. Collective; else nothing.
  bool recover();
  /// Whether this rank's step was interrupted, and nothing has recovered since.
  bool interrupted() const { return interrupted_; }
  /// After the update: publishes every group and starts a new window of rounds.
  void publish();

 private:
  std::string_view say(std::string_view call) override { return transport_.say(call); }
  void run_in_backward(const std::function<void()>& step) override { events_.run(step); }
  void entering_forward(UnitState& unit) override;
  void unsharded(UnitState& unit, Pass pass) override;
  void leaving_forward(const UnitState& unit, const std::vector<at::Tensor>& outputs) override;
  void entering_backward() override;
  int64_t backward_number() const override { return backward_number_; }
  bool all_gradients_seen(const UnitState& unit) const override;
  void made_nodes(NodeMark first, std::function<void()> reached, const std::vector<AutogradNode>& hooked) override;
  void keep_second_graph();
  void accumulated(size_t g, size_t p);
  void watch_gradients();
  void forget_forwards() noexcept;
  void forget_order() noexcept;
  void drop_step() noexcept;
  void make_units(const std::vector<FoundUnit>& found, const ShardOptions& options, StorePlan& plan,
                  std::vector<std::vector<at::Tensor>>& tensors);
  void warn_of_large_units(const StorePlan& plan);

  std::shared_ptr<torch::nn::Module> root_;  // kept alive, where there is one
  Transport& transport_;
  std::shared_ptr<Transport> shard_transport_;
  std::unique_ptr<Store> store_;
  BufferPool casts_;
  std::vector<std::unique_ptr<ParamGroup>> groups_;
  std::vector<size_t> unit_of_group_;
  std::vector<std::shared_ptr<UnitState>> units_;
  std::vector<UnitBase*> attached_;  // modules that point to units_
  std::unique_ptr<Reducer> reducer_;
  std::vector<std::vector<AutogradNode>> accumulators_;  // by group: keep the hooks on the parameters alive
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);

  bool lets_go_ = false;  // any group, of its whole parameters
  NodeRanges node_ranges_;
  bool makes_graph_ = false;  // the backward under way (create_graph)
  NodeMark first_of_backward_ = {};

  Schedule schedule_;
  std::vector<std::string> warnings_;
  Gradients gradients_ = Gradients::reduce;
  BackwardEvents events_;
  bool in_backward_ = false;
  std::optional<Said> said_;  // in backward
  bool interrupted_ = false;
  uint64_t recoveries_ = 0;  // of the transport, that this model has followed
  int64_t backward_number_ = 0;
  int64_t forwards_ = 0;  // of units, with gradients, in this step
  std::optional<NonFinite> non_finite_;
  std::vector<size_t> forward_order_;      // units as they ran in the last whole forward: drives prefetch in forward
  std::vector<size_t> forward_order_now_;  // in the one under way: drives prefetch in its backward
};

}  // namespace sherd
