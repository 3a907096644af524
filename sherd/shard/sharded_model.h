// A model under a strategy: its units, their groups, where they lie, and what reduces their gradients.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sherd/base/parameter_source.h"
#include "sherd/comm/transport.h"
#include "sherd/memory/ledger.h"
#include "sherd/shard/course.h"
#include "sherd/shard/discover.h"
#include "sherd/shard/group_planning.h"
#include "sherd/shard/param_group.h"
#include "sherd/shard/reducer.h"
#include "sherd/shard/shard_options.h"
#include "sherd/shard/store.h"
#include "sherd/shard/unit.h"

namespace sherd {

class ShardedModel {
 public:
  /// Takes over the parameters of `units`, the root first; they point to the model's modules, which outlive it as do
  /// `transport` and `ledger`.
  ShardedModel(const std::vector<FoundUnit>& units, Transport& transport, Ledger& ledger, const ShardOptions& options);
  /// Takes over the parameters of `root` (their values are lost: fill() gives new ones). Collective. `root`,
  /// `transport` and `ledger` outlive it. Throws ConfigError for parameters that cannot be sharded.
  ShardedModel(std::shared_ptr<torch::nn::Module> root, Transport& transport, Ledger& ledger,
               const ShardOptions& options);
  ~ShardedModel();
  ShardedModel(const ShardedModel&) = delete;
  ShardedModel& operator=(const ShardedModel&) = delete;

  /// Takes fp32 values of a parameter's rows of the o-th of the store's owned(): [rows * row_elements].
  using SetRows = std::function<void(size_t g, size_t p, size_t o, const at::Tensor& values)>;
  /// First values: each rank asks for the rows it owns, and hands them to `set`. Collective.
  void fill(const ParameterSource& source, const SetRows& set);
  /// The same without anything that rows are rounded from.
  void fill(const ParameterSource& source);

  /// What is allowed, but perhaps not meant: one unit that holds most of the model.
  const std::vector<std::string>& warnings() const { return warnings_; }
  /// What happens in it from a forward to the step.
  Course& course() { return *course_; }
  UnitState& root_unit() { return *units().front(); }
  /// The root first, then in the order of the module tree.
  const std::vector<std::shared_ptr<UnitState>>& units() const { return course_->units(); }
  Store& store() { return *store_; }
  Transport& transport() { return transport_; }
  /// The ranks that rows are spread over.
  Transport& shard_transport() { return *shard_transport_; }
  const std::vector<std::unique_ptr<ParamGroup>>& groups() const { return groups_; }

  /// The reduced gradient of a parameter's rows of the o-th of the store's owned(): [rows * row_elements].
  at::Tensor gradient_rows(size_t g, size_t p, size_t o);
  /// Whether anything was reduced into group g since the last publish().
  bool has_gradients(size_t g) const { return reducer_->rounds(g) > 0; }
  /// The gradients of group g that are there count no more: the next reduction overwrites them.
  void forget_gradients(size_t g) { reducer_->start_window(g); }
  /// The opposite: the next reduction adds to what store().gradient(g) holds.
  void keep_gradients(size_t g) { reducer_->keep_window(g); }
  /// Whether any gradient of parameter p of group g is in what was reduced last.
  bool has_seen(size_t g, size_t p) const { return reducer_->given(g, p); }
  /// Whether group g's are held, whatever the others' are.
  bool holds(size_t g) const { return reducer_->holds(g); }

  /// Other roles of parameters, by group; at first those that require gradients are awaited, the others frozen.
  /// Between backwards or in BackwardEvents::begin, the same on all ranks; collective. Returns the groups whose
  /// gradients have moved: see Store::set_roles.
  std::vector<size_t> set_roles(const std::vector<Roles>& roles);
  /// Throws ConfigError naming a parameter whose requires_grad is not what its role says.
  void check_roles() const;

 private:
  void watch_gradients();

  std::shared_ptr<torch::nn::Module> root_;  // kept alive, where there is one
  Transport& transport_;
  std::shared_ptr<Transport> shard_transport_;
  std::unique_ptr<Store> store_;
  BufferPool casts_;
  std::vector<std::unique_ptr<ParamGroup>> groups_;
  std::unique_ptr<Reducer> reducer_;
  std::unique_ptr<Course> course_;
  std::vector<UnitBase*> attached_;                      // modules that point to units
  std::vector<std::vector<AutogradNode>> accumulators_;  // by group: keep the hooks on the parameters alive
  std::vector<std::string> warnings_;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

}  // namespace sherd
