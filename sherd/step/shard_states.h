// What the update rules keep for shards: how much that is, and the memory, booked for their units.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "sherd/memory/ledger.h"
#include "sherd/optim/update_rule.h"
#include "sherd/step/owned_shard.h"

namespace sherd {

/// How a shard is updated.
struct ShardRule {
  const UpdateRule* rule = nullptr;
  MomentType moments = MomentType::fp32;
  Master master = Master::nearest;
};

/// What `rule` keeps for a shard, and the shard itself as its piece.
struct ShardState {
  std::vector<StateTensor> kinds;   // names and types
  std::vector<at::Tensor> tensors;  // in that order: 1-D, each a storage of its own
  Master master = Master::nearest;
  uint64_t key = 0;  // of the parameter's name

  UpdatePiece piece(const OwnedShard& shard, at::Tensor gradient = {}) const;
};

/// A number of the parameter's own: of its name.
uint64_t key_of(const OwnedShard& shard);

/// What parameters of 16 bits are rounded from; fp32 ones are their own masters. Throws ConfigError for a master that
/// the type cannot have.
Master master_for(const OwnedShard& shard, Master asked);

/// The moments of a shard, where 8 bits were asked for: fp32 where its parameter is small or named by one of `fp32`
/// (globs), or where shards would cut blocks of kMomentBlock.
enum class MomentFit { eight_bits, small_or_named, cuts_blocks };
MomentFit fit_of_moments(const OwnedShard& shard, std::span<const std::string> fp32);

/// Zero-filled and booked as moments and masters of the shards' units: shards of one unit that follow each other share
/// an allocation a kind, at 64-byte-aligned places, which lives as long as any of its tensors. A shard without a rule
/// gets nothing. Masters are not filled: see set_values().
std::vector<ShardState> make_states(Ledger& ledger, std::span<const OwnedShard* const> shards,
                                    std::span<const ShardRule> rules);

}  // namespace sherd
