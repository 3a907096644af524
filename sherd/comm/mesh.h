// The mesh: all ranks on two named axes, `replicate` (slow, outer) x `shard` (fast, inner). What is asked for; where
// the ranks are is in topology.h.
#pragma once

#include <vector>

namespace sherd {

/// Sizes of the axes and this rank's place on them. rank = replicate_index() * shard + shard_index().
struct Mesh {
  int replicate = 1;
  int shard = 1;
  int rank = 0;

  int size() const { return replicate * shard; }
  int shard_index() const { return rank % shard; }
  int replicate_index() const { return rank / shard; }
  /// The ranks that differ from this one on that axis alone, and itself: ascending.
  std::vector<int> shard_ranks() const;
  std::vector<int> replicate_ranks() const;

  /// A mesh over `world` ranks; shard_size 0 takes all that replicate leaves. Throws ConfigError when the product is
  /// not the world size.
  static Mesh over(int world, int rank, int replicate_size, int shard_size);
};

}  // namespace sherd
