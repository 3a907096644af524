// A strategy is a row in a table: which kind of state is spread over the ranks, and which is whole on each.
#pragma once

#include <span>
#include <string_view>

namespace sherd {

enum class Spread {
  whole,    // on every rank
  sharded,  // each rank holds its own rows
};

struct Strategy {
  std::string_view name;
  Spread parameters;  // between a unit's uses
  Spread gradients;   // from a unit's backward to the step
  Spread optimizer;   // master weights and moments
};

/// When a unit gives up its whole parameters between forward and backward (strategies that spread parameters).
enum class ReshardPolicy {
  units,  // every unit but the root, which needs them again at once
  never,  // kept until backward: one gather less, more memory
  all,    // the root too
};

/// ddp, zero1, zero2, zero3, and hsdp: zero3 along the mesh's shard axis, the same on each replicate index.
std::span<const Strategy> strategies();

/// By name; "fsdp" is zero3. Throws ConfigError.
const Strategy& find_strategy(std::string_view name);

}  // namespace sherd
