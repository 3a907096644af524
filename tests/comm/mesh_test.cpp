#include "sherd/comm/mesh.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

std::string error_of(int world, int replicate, int shard) {
  try {
    Mesh::over(world, 0, replicate, shard);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Mesh, RanksFillTheShardAxisFirst) {
  for (int rank = 0; rank < 6; ++rank) {
    const Mesh mesh = Mesh::over(6, rank, 2, 3);
    EXPECT_EQ(mesh.size(), 6);
    EXPECT_EQ(mesh.replicate_index(), rank / 3);
    EXPECT_EQ(mesh.shard_index(), rank % 3);
    EXPECT_EQ(mesh.replicate_index() * mesh.shard + mesh.shard_index(), mesh.rank);
  }
}

TEST(Mesh, TheRanksOfAnAxisDifferOnItAlone) {
  const Mesh mesh = Mesh::over(6, 4, 2, 3);
  EXPECT_EQ(mesh.shard_ranks(), (std::vector{3, 4, 5}));
  EXPECT_EQ(mesh.replicate_ranks(), (std::vector{1, 4}));
  EXPECT_EQ(Mesh{}.shard_ranks(), std::vector{0});
}

TEST(Mesh, ShardZeroTakesWhatReplicateLeaves) {
  EXPECT_EQ(Mesh::over(6, 0, 1, 0).shard, 6);
  EXPECT_EQ(Mesh::over(6, 0, 3, 0).shard, 2);
  EXPECT_EQ(Mesh::over(1, 0, 1, 0).shard, 1);
}

TEST(Mesh, AProductThatIsNotTheWorldNamesARankCountThatFits) {
  EXPECT_EQ(error_of(4, 2, 3),
            "[mesh] got replicate 2 x shard 3 with 4 ranks, expected a product of 4; try --ranks 6 or shard 0");
  EXPECT_EQ(error_of(4, 3, 0), "[mesh] got replicate 3 x shard 0 with 4 ranks, expected a product of 4; try --ranks 3");
}

TEST(Mesh, SizesBelowOneAreErrors) {
  EXPECT_EQ(error_of(4, 0, 4), "[mesh.replicate] got 0, expected at least 1; try 1");
  EXPECT_EQ(error_of(4, -1, 4), "[mesh.replicate] got -1, expected at least 1; try 1");
  EXPECT_EQ(error_of(4, 2, -1), "[mesh.shard] got -1, expected at least 1, or 0 for all ranks; try 0");
}

TEST(Mesh, AProductBeyondIntIsAnErrorToo) {
  EXPECT_NE(error_of(4, 65536, 65536).find("expected a product of 4; try --ranks 4294967296"), std::string::npos);
  EXPECT_NE(error_of(4, 1 << 30, 4).find("expected a product of 4"), std::string::npos);
}

}  // namespace
}  // namespace sherd
