// A parameter group: the parameters of a unit that communicate together (of the same types, and at first of the same
// requires_grad).
//
// Each parameter keeps one tensor for the whole training. Unsharded, its storage points into the group's whole buffer,
// or into a cast of it where the group is stored in another type than is computed with; sharded, the storage has no
// memory but keeps its size, and any use of it throws an error that names it.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "sherd/memory/buffer.h"
#include "sherd/shard/store.h"

namespace sherd {

enum class GroupState {
  sharded,     // memory: this rank's rows
  unsharding,  // a gather is in flight: rows and, with private buffers, the whole
  unsharded,   // the whole (private buffers), or nothing more (shared)
};

class ParamGroup {
 public:
  /// `parameters` in the order of the plan's layout, of its compute type. All are armed until the first unshard. Casts
  /// are lent by `pool`.
  ParamGroup(Store& store, BufferPool& pool, size_t index, const GroupPlan& plan, std::vector<at::Tensor> parameters);

  /// Leaves the parameters armed: their memory goes with the store.
  ~ParamGroup() { arm(); }
  ParamGroup(const ParamGroup&) = delete;
  ParamGroup& operator=(const ParamGroup&) = delete;

  void begin_unshard();
  void unshard();
  /// Makes the tensors unusable where the strategy spreads parameters; otherwise leaves them.
  void reshard();
  /// Forgets a gather that was begun and not waited for.
  void abandon_unshard() noexcept;
  /// As sharded, after the store has dropped what was under way.
  void interrupt() noexcept;
  /// After this rank has written its rows: peers may read them, and a backward that saved the old values throws.
  void publish();

  /// Throws FaultError naming the first parameter that was changed in place since publish(), by its version counter.
  void check_unchanged();
  /// What was changed until now is no concern of check_unchanged() any more.
  void accept_changes();

  GroupState state() const { return state_; }
  size_t index() const { return index_; }
  const GroupLayout& layout() const { return plan_.layout; }
  at::ScalarType type() const { return plan_.type; }
  at::ScalarType compute_type() const { return plan_.compute; }
  /// See Role. set_roles() is true where it changes which parameters have places for gradients.
  bool set_roles(Roles roles) { return plan_.set_roles(std::move(roles)); }
  const Roles& roles() const { return plan_.roles; }
  /// Of those that have places for gradients.
  const GroupLayout& gradient_layout() const { return plan_.gradients; }
  /// Whether any has.
  bool trainable() const { return plan_.trainable(); }
  bool takes_part() const { return plan_.any(Role::held); }
  /// Whether reshard() takes the whole parameters away.
  bool lets_go() const { return casts() || plan_.parameters == Spread::sharded; }
  const std::vector<at::Tensor>& parameters() const { return parameters_; }

 private:
  bool casts() const { return plan_.compute != plan_.type; }
  void arm();
  void point_to(const at::Tensor& whole);

  Store& store_;
  BufferPool& pool_;
  BufferPool::Loan cast_;
  size_t index_;
  GroupPlan plan_;
  std::vector<at::Tensor> parameters_;
  std::vector<std::string> while_sharded_;  // what their uses say then
  GroupState state_ = GroupState::sharded;
  void* pointed_ = nullptr;
  std::vector<int64_t> versions_;  // of the parameters, as published
};

}  // namespace sherd
