#include "sherd/comm/mesh.h"

#include "sherd/base/error.h"

namespace sherd {

std::vector<int> Mesh::shard_ranks() const {
  std::vector<int> ranks;
  for (int i = 0; i < shard; ++i) ranks.push_back(replicate_index() * shard + i);
  return ranks;
}

std::vector<int> Mesh::replicate_ranks() const {
  std::vector<int> ranks;
  for (int i = 0; i < replicate; ++i) ranks.push_back(i * shard + shard_index());
  return ranks;
}

Mesh Mesh::over(int world, int rank, int replicate_size, int shard_size) {
  if (replicate_size < 1) config_error("mesh.replicate", "got {}, expected at least 1; try 1", replicate_size);
  if (shard_size < 0) config_error("mesh.shard", "got {}, expected at least 1, or 0 for all ranks; try 0", shard_size);
  if (shard_size == 0 && world % replicate_size == 0) shard_size = world / replicate_size;
  const int64_t ranks = int64_t{replicate_size} * std::max(shard_size, 1);
  if (shard_size == 0 || ranks != world)
    config_error("mesh", "got replicate {} x shard {} with {} ranks, expected a product of {}; try --ranks {}{}",
                 replicate_size, shard_size, world, world, ranks, world % replicate_size == 0 ? " or shard 0" : "");
  return {replicate_size, shard_size, rank};
}

}  // namespace sherd
