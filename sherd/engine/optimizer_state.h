// The state of an update rule for all rows that this rank owns, and the pieces to update.
#pragma once

#include <string>
#include <vector>

#include "sherd/engine/engine_options.h"
#include "sherd/memory/buffer.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/optim/update_rule.h"
#include "sherd/shard/sharded_model.h"

namespace sherd {

class OptimizerState {
 public:
  /// Of the trainable groups of `model`, zero-filled and booked as moments and masters. `matrix_rule` may be null. The
  /// arguments outlive it.
  OptimizerState(const UpdateRule& rule, const UpdateRule* matrix_rule, ShardedModel& model, Ledger& ledger,
                 const EngineOptions& options);

  /// The rows of the o-th of the store's owned() of a parameter, without a gradient.
  UpdatePiece piece(size_t g, size_t p, size_t o) const;
  const Hyperparameters& values(size_t g, size_t p) const { return *hyper_[g][p]; }
  /// Whether the matrix rule updates it.
  bool is_matrix(size_t g, size_t p) const { return groups_[g].matrix[p]; }
  /// Which parameters have fp32 moments though 8 bits were asked for, and why; empty where there are none.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  struct Place {
    MemoryKind kind;
    at::ScalarType type;
    int64_t offset, elements;  // in its group's buffer of that kind: in bytes, and how many
  };
  struct Group {
    Buffer moments, masters;                          // bytes
    std::vector<std::vector<std::vector<Place>>> at;  // by parameter, owner and state
    std::vector<Master> master;                       // by parameter
    std::vector<bool> matrix;                         // by parameter
    std::vector<uint64_t> key;                        // by parameter: of its name
  };
  void lay_out(const UpdateRule& rule, const UpdateRule* matrix_rule, size_t g, const EngineOptions& options,
               Group& group, int64_t& moments, int64_t& masters);
  MomentType moments_of(size_t g, size_t p, const EngineOptions& options);

  ShardedModel& model_;
  OptimGroups optim_groups_;
  std::vector<Group> groups_;
  std::vector<std::vector<const Hyperparameters*>> hyper_;  // by group and parameter
  std::vector<std::string> cut_, notes_;
};

}  // namespace sherd
