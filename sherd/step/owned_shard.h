// The rows of every parameter that this rank updates: enumerated once, for whoever updates, saves or inspects them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "sherd/shard/layout.h"
#include "sherd/shard/sharded_model.h"

namespace sherd {

/// Some rows of one parameter.
struct OwnedShard {
  std::string fqn;             // the parameter's name in the model
  std::string unit;            // the name of its unit
  std::vector<int64_t> sizes;  // of the whole parameter
  Rows rows;                   // which of its rows; none may be there
  int64_t row_elements = 1;
  int ranks = 1;      // over how many its rows are spread
  at::Tensor values;  // a writable view of them as they are stored, 1-D [rows.count * row_elements]

  /// Which element of the parameter the first of these is.
  int64_t first_element() const { return rows.first * row_elements; }
};

class OwnedShards {
 public:
  /// Of all parameters, in the order of the module tree; `model` outlives it. Where a rank updates all rows (the
  /// strategy does not spread the optimizer's state), they come in pieces(), one after the other, in the order of rows.
  explicit OwnedShards(ShardedModel& model);

  const std::vector<OwnedShard>& all() const { return shards_; }
  /// How many shards each parameter has here: 1, or the number of ranks.
  size_t pieces() const { return pieces_; }
  /// The index of the first shard of parameter p of group g; its o-th owner's follows o places behind.
  size_t index_of(size_t g, size_t p, size_t o) const { return first_of_group_[g] + p * pieces_ + o; }
  /// This rank's part of parameters that it holds in pieces: indices of all(), one a parameter.
  std::vector<size_t> of_this_rank() const;
  /// Whether the parameter's group has places for gradients.
  bool trainable(size_t i) const;
  /// The sum of the reduced gradients of shard i: [rows.count * row_elements], until the next backward.
  at::Tensor gradient(size_t i) const;
  /// True where of_this_rank() is not the same as that of a rank before this one.
  bool holds_first_copy() const;
  /// Zeroes gradients of what no backward of this step has come to, so that they count as such.
  void complete_gradients() const;

 private:
  struct Place {
    size_t group, parameter, owner;
  };

  ShardedModel& model_;
  size_t pieces_;
  std::vector<OwnedShard> shards_;
  std::vector<Place> places_;
  std::vector<size_t> first_of_group_;
};

}  // namespace sherd
