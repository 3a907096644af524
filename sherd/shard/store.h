// Where the parameters and gradients of all groups lie on one transport, and how they travel. Two stores:
// SharedStore (one host: one copy of the parameters, peers read gradients in place) and PrivateStore (any transport:
// each rank has buffers of its own, filled by collectives). The rest of shard/ does not know which.
//
// All tensors are 1-D in the layouts of [Note: Layout]: parameters of the group's type, gradients (by the plan's second
// layout) on their way of its reduce type (see summed_in()), reduced ones of kept_gradient_type(). Collective calls
// (publish, unshard, contribute, reduce) come in the same order on all ranks. "This rank" is its index among the ranks
// that the parameters are spread over.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "sherd/comm/codec.h"
#include "sherd/comm/transport.h"
#include "sherd/memory/ledger.h"
#include "sherd/shard/layout.h"
#include "sherd/shard/strategy.h"

namespace sherd {

/// How a group's gradients wait for the reduction.
enum class SlotKind {
  ring,       // in one of two buffers that all such groups take in turn
  dedicated,  // in a buffer of its own
};

/// Where a group's reduced gradient is summed up.
enum class Summing {
  in_place,  // in this rank's rows of the dedicated slot: one round a step
  apart,     // in a buffer of its own: any number of rounds
};

/// What a unit's forward may do with the group's parameters.
enum class Access {
  read,   // one copy serves all ranks of a host; torch refuses to write to it
  watch,  // the same for code that asks torch for more than it needs (compiled): a write is found afterwards
  write,  // each rank has a copy that it may change in place
};

/// What rounds do for a parameter. It may change between them.
enum class Role {
  frozen,   // nothing: it has no place for a gradient
  idle,     // nothing, but its place is kept
  held,     // they take what it holds since it was frozen
  awaited,  // backward makes a gradient
};
using Roles = std::vector<Role>;  // of a group's parameters

struct GroupPlan {
  GroupLayout layout;
  GroupLayout gradients = {};  // of the parameters that have places for gradients: others have no rows there
  Roles roles = {};
  SlotKind slot = SlotKind::ring;
  at::ScalarType type = at::kFloat;     // as stored, and on the way to other ranks
  at::ScalarType compute = at::kFloat;  // of the module's parameters: cast to it by each unshard where it is another
  at::ScalarType reduce = at::kFloat;   // of gradients on their way
  Spread parameters = Spread::sharded;  // between uses; the strategy's, or whole for small groups
  Access access = Access::read;

  int64_t element_bytes() const { return static_cast<int64_t>(c10::elementSize(type)); }
  /// Whether any parameter has at least this role.
  bool any(Role role) const;
  bool trainable() const { return any(Role::idle); }
  /// True where that changes which parameters have places.
  bool set_roles(Roles roles);
};

struct StorePlan {
  Strategy strategy;
  Summing summing = Summing::apart;
  at::Device device = at::kCPU;
  std::vector<GroupPlan> groups;
  /// What gradients travel as between ranks. Sums, and what stays in one memory, are never encoded.
  Codec codec = Codec::identity;
};

/// What gradients that travel as `reduce` are summed in: fp32, but for fp64 and complex ones.
inline at::ScalarType summed_in(at::ScalarType reduce) {
  return reduce == at::kDouble || c10::isComplexType(reduce) ? reduce : at::kFloat;
}

/// Of a reduced gradient: the reduce type where a step has one round, else what it is summed in.
inline at::ScalarType kept_gradient_type(const StorePlan& plan, size_t g) {
  return plan.summing == Summing::in_place ? plan.groups[g].reduce : summed_in(plan.groups[g].reduce);
}

enum class Round { first, later };         // of a step: overwrite the reduced gradient, or add to it
enum class Patience { now_or_not, wait };  // reduce only if nothing has to be waited for, or wait

/// Over which ranks a reduction sums, where there are replicas.
enum class Reach {
  all,         // all; what earlier rounds have kept back as well
  shard_axis,  // this replica's ranks: kept back for a later round over all
};

class Store {
 public:
  virtual ~Store() = default;

  // Parameters.
  /// Starts to bring group g's whole buffer up to date; nothing where it is.
  virtual void begin_unshard(size_t g) = 0;
  /// The whole buffer, all owners' latest rows in it; valid until reshard(g). Read-only where it is shared.
  virtual at::Tensor unshard(size_t g) = 0;
  /// Lets the whole buffer go, where the strategy does not keep it.
  virtual void reshard(size_t g) = 0;
  /// Ranks whose rows this rank updates: itself, or all.
  virtual const std::vector<int>& owned() const = 0;
  /// The rows of `owner` (one of owned()) of a parameter, for writing: [rows * row_elements].
  virtual at::Tensor rows(size_t g, size_t parameter, int owner) = 0;
  /// This rank has written its rows of g; the next unshard on every rank sees them.
  virtual void publish(size_t g) = 0;
  /// Throws FaultError if this rank wrote to parameters that it shares with others past torch; the change is dropped.
  virtual void check_unwritten() {}
  /// Whether this rank wrote to parameters that it shares with others since the last check or take_back(): to copies.
  virtual bool was_written() const { return false; }
  /// Drops these copies.
  virtual void take_back() {}
  /// This rank's index among the owners of rows.
  virtual int index() const = 0;

  // Gradients, in rounds: open_slot, fill, contribute, reduce.
  /// Between rounds: the parameters of each group have these roles from here on. Where places change, gradient(g) is
  /// new and zero (whoever holds the old one keeps it); what is kept back stays. Collective. Not where it is in_place.
  virtual void set_roles(const std::vector<Roles>& roles) = 0;
  /// The group whose round this rank has to reduce before g can have a slot; -1 when none.
  virtual int64_t slot_blocked_by(size_t g) const = 0;
  /// A slot for g's gradients: rank-major [ranks * shard_elements], the padding zero. Waits for peers to be done with
  /// it.
  virtual at::Tensor open_slot(size_t g) = 0;
  /// Hands the filled slot over.
  virtual void contribute(size_t g) = 0;
  /// Sums this rank's rows over all ranks (canonical tree) into gradient(g). False if that would have to wait.
  virtual bool reduce(size_t g, Round round, Patience patience) = 0;
  /// Every contributed group is reduced: waits for what is still on its way to gradient().
  virtual void finish_round() {}
  /// After finish_round(): reduced gradients, rank-major pieces of owned(): [owned().size() * shard_elements].
  virtual at::Tensor gradient(size_t g) = 0;
  /// A new buffer in the place of gradient(g): whoever holds the old one keeps it as it is. Not where it is in_place.
  virtual void renew_gradient(size_t g) = 0;
  /// What the following reductions of group g divide their sums by: 1 at first.
  virtual void set_divisor(size_t g, double divisor) = 0;
  /// Of the following reductions; `all` at first, and always where there are no replicas.
  virtual void set_reach(Reach) {}
  /// Whether sums of group g are kept back: gradient(g) lacks them.
  virtual bool keeps_back(size_t /*g*/) const { return false; }

  // After a fault: drop() what is under way (this rank alone; does not wait), then, when all ranks have done so and the
  // transport has recovered, restart() (collective). Parameters stay as published.
  virtual void drop() noexcept = 0;
  /// The same for a begin_unshard(g) alone, which nobody has waited for.
  virtual void drop_unshard(size_t /*g*/) noexcept {}
  virtual void restart() = 0;
};

/// The transports that a store works on. `replicas` is null but where each rank of `shard` has peers with the same
/// rows.
struct StoreTransports {
  std::shared_ptr<Transport> shard;     // the ranks that rows are spread over
  std::shared_ptr<Transport> replicas;  // the ranks that own the same rows as this one
};

/// Makes the store. Collective over both transports. Throws ConfigError for a device that the ranks' one memory is not
/// for, and for a codec that would do nothing: where no gradient is sent, or none of a type that it changes.
std::unique_ptr<Store> make_store(StoreTransports transports, Ledger& ledger, StorePlan plan);
/// On one axis. The transport outlives the store.
std::unique_ptr<Store> make_store(Transport& transport, Ledger& ledger, StorePlan plan);

}  // namespace sherd
