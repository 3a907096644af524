// A strategy is a row in a table: which kind of state is spread over the ranks, and which is whole on each; over which
// axes of a mesh; and who sums gradients.
#pragma once

#include <span>
#include <string_view>

#include "sherd/comm/mesh.h"

namespace sherd {

enum class Spread {
  whole,    // on every rank
  sharded,  // each rank holds its own rows
};

/// The axes of a mesh that a row knows. What is sharded is spread over `shard`; each index on `replicate` has all of
/// it.
enum class MeshAxes { shard, replicate_and_shard };

/// Who has the sum of a gradient's rows over all ranks.
enum class Sums {
  owner,       // the rank that updates them (on each index of `replicate`)
  every_rank,  // all of them, each of which updates all rows
};

struct Strategy {
  std::string_view name;
  Spread parameters = Spread::sharded;  // between a unit's uses
  Spread gradients = Spread::sharded;   // from a unit's backward to the step
  Spread optimizer = Spread::sharded;   // master weights and moments
  Sums sums = Sums::owner;
  MeshAxes axes = MeshAxes::shard;

  /// Throws ConfigError for a row that no store supports, and for a mesh with axes that it does not know: before
  /// anything is allocated.
  void validate(const Mesh& mesh) const;
};

/// When a unit gives up its whole parameters between forward and backward (strategies that spread parameters).
enum class ReshardPolicy {
  units,  // every unit but the root, which needs them again at once
  never,  // kept until backward: one gather less, more memory
  all,    // the root too
};

/// ddp, zero1, zero2, zero3, and hsdp.
std::span<const Strategy> strategies();

/// By name; "fsdp" is zero3. Throws ConfigError.
const Strategy& find_strategy(std::string_view name);

}  // namespace sherd
