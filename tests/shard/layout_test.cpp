#include "sherd/shard/layout.h"

#include <gtest/gtest.h>

#include <random>

namespace sherd {
namespace {

std::vector<int64_t> counts(int64_t rows, int ranks) {
  std::vector<int64_t> result;
  for (int r = 0; r < ranks; ++r) result.push_back(rows_of_rank(rows, r, ranks).count);
  return result;
}

TEST(RowsOfRank, FollowsTheChunkRule) {
  using Counts = std::vector<int64_t>;
  EXPECT_EQ(counts(7, 3), (Counts{3, 3, 1}));
  EXPECT_EQ(counts(5, 3), (Counts{2, 2, 1}));
  EXPECT_EQ(counts(1, 3), (Counts{1, 0, 0}));
  EXPECT_EQ(counts(0, 2), (Counts{0, 0}));
  EXPECT_EQ(counts(6, 1), (Counts{6}));
  EXPECT_EQ(counts(5, 4), (Counts{2, 2, 1, 0}));
  EXPECT_EQ(counts(9, 8), (Counts{2, 2, 2, 2, 1, 0, 0, 0}));
}

TEST(RowsOfRank, EveryRowHasTheRankOfItsChunk) {
  for (int64_t rows = 0; rows <= 40; ++rows) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      const int64_t chunk = (rows + ranks - 1) / ranks;
      std::vector<int> seen(static_cast<size_t>(rows));
      for (int r = 0; r < ranks; ++r) {
        const Rows own = rows_of_rank(rows, r, ranks);
        ASSERT_GE(own.count, 0);
        for (int64_t row = own.first; row < own.first + own.count; ++row) {
          ASSERT_LT(row, rows);
          ++seen[static_cast<size_t>(row)];
          EXPECT_EQ(row / chunk, r) << rows << " rows on " << ranks << " ranks";
        }
      }
      EXPECT_EQ(seen, std::vector<int>(seen.size(), 1)) << rows << " rows on " << ranks << " ranks";
    }
  }
}

TEST(LayOut, PlacesParametersAlignedAndInOrder) {
  const GroupLayout group = lay_out("layers.0", {{"w", {7, 3}}, {"scale", {}}, {"big", {5, 2, 100}}}, 3);
  EXPECT_EQ(group.unit, "layers.0");
  EXPECT_EQ(group.ranks, 3);
  const ParameterLayout &w = group.parameters[0], &scale = group.parameters[1], &big = group.parameters[2];
  EXPECT_EQ(w.rows, 7);
  EXPECT_EQ(w.row_elements, 3);
  EXPECT_EQ(scale.rows, 1);
  EXPECT_EQ(scale.row_elements, 1);
  EXPECT_EQ(scale.elements(), 1);
  EXPECT_EQ(big.row_elements, 200);
  // 21, 1 and 1000 elements, each rounded up to 256.
  EXPECT_EQ(w.offset, 0);
  EXPECT_EQ(scale.offset, 256);
  EXPECT_EQ(big.offset, 512);
  EXPECT_EQ(group.whole_elements, 512 + 1024);
  // Largest shards: 3 rows of 3, one row of 1, 2 rows of 200, each rounded up to 16.
  EXPECT_EQ(w.shard_offset, 0);
  EXPECT_EQ(scale.shard_offset, 16);
  EXPECT_EQ(big.shard_offset, 32);
  EXPECT_EQ(group.shard_elements, 32 + 400);
}

TEST(LayOut, GivesARowOfEachRankToWhatIsWholeOnAllOfThem) {
  const GroupLayout group = lay_out("u", {{"scale", {}, Copies::each_rank}, {"one", {1, 5}, Copies::each_rank}}, 3);
  for (size_t p = 0; p < 2; ++p) {
    const ParameterLayout& parameter = group.parameters[p];
    EXPECT_EQ(parameter.rows, 3);
    EXPECT_EQ(parameter.row_elements, p == 0 ? 1 : 5);
    EXPECT_EQ(parameter.offset, 256 * static_cast<int64_t>(p));
    EXPECT_EQ(parameter.shard_offset, 16 * static_cast<int64_t>(p));
    for (int r = 0; r < 3; ++r) EXPECT_EQ(group.elements(p, r).count, parameter.row_elements);
  }
  EXPECT_EQ(group.shard_elements, 32);
}

TEST(WithRowsOf, LeavesNoPlaceForTheOthers) {
  const GroupLayout all = lay_out("u", {{"a", {7, 3}}, {"b", {40}}, {"c", {5}}}, 2);
  const GroupLayout some = with_rows_of(all, {true, false, true});
  EXPECT_EQ(some.parameters[0].shard_offset, 0);
  EXPECT_EQ(some.parameters[2].shard_offset, 16);
  EXPECT_EQ(some.shard_elements, 32);
  EXPECT_EQ(some.whole_elements, all.whole_elements);
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(some.elements(1, r).count, 0);
    EXPECT_EQ(some.elements(2, r).count, all.elements(2, r).count);
  }
  EXPECT_EQ(with_rows_of(all, {false, false, false}).shard_elements, 0);
}

TEST(LayOut, OfNothingIsEmpty) {
  const GroupLayout group = lay_out("", {}, 2);
  EXPECT_EQ(group.whole_elements, 0);
  EXPECT_EQ(group.shard_elements, 0);
}

TEST(LayOut, RandomShapesTileWithoutGapOrOverlap) {
  std::mt19937 random(11);
  const auto up_to = [&](int64_t most) { return std::uniform_int_distribution<int64_t>(1, most)(random); };
  for (int trial = 0; trial < 200; ++trial) {
    const int ranks = static_cast<int>(up_to(9));
    std::vector<NamedShape> shapes;
    for (int64_t p = up_to(6); p > 0; --p) {
      std::vector<int64_t> sizes;
      for (int64_t dims = up_to(4) - 1; dims > 0; --dims) sizes.push_back(up_to(13));
      shapes.push_back({"p" + std::to_string(p), sizes});
    }
    const GroupLayout group = lay_out("unit", shapes, ranks);
    // Who uses each element of the whole buffer, and of each rank's piece.
    std::vector<int> whole(static_cast<size_t>(group.whole_elements));
    for (int r = 0; r < ranks; ++r) {
      std::vector<int> piece(static_cast<size_t>(group.shard_elements));
      for (size_t p = 0; p < shapes.size(); ++p) {
        const ParameterLayout& parameter = group.parameters[p];
        const Rows own = group.rows(p, r);
        EXPECT_EQ(parameter.offset % 256, 0);
        EXPECT_EQ(parameter.shard_offset % 16, 0);
        for (int64_t i = 0; i < own.count * parameter.row_elements; ++i) {
          ++whole.at(static_cast<size_t>(parameter.offset + own.first * parameter.row_elements + i));
          EXPECT_EQ(++piece.at(static_cast<size_t>(parameter.shard_offset + i)), 1);
        }
      }
    }
    int64_t used = 0, elements = 0;
    for (const auto& parameter : group.parameters) {
      for (int64_t i = 0; i < parameter.elements(); ++i)
        EXPECT_EQ(whole.at(static_cast<size_t>(parameter.offset + i)), 1) << parameter.fqn;
      elements += parameter.elements();
    }
    for (const int users : whole) used += users;
    EXPECT_EQ(used, elements);
  }
}

}  // namespace
}  // namespace sherd
