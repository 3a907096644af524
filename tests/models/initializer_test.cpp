#include "sherd/models/initializer.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sherd {
namespace {

std::vector<float> values(const ParameterSource& source, RowRange range) {
  std::vector<float> out(static_cast<size_t>(range.rows * range.row_elements));
  source(range, out.data());
  return out;
}

TEST(SeededNormal, EveryPieceHasTheSameValues) {
  const auto source = seeded_normal(7);
  for (const int64_t row : {1, 3, 64}) {  // odd rows begin inside a pair of values
    const auto whole = values(source, {"w", 0, 37, row});
    for (int64_t first = 0; first < 37; first += 5) {
      const int64_t rows = std::min<int64_t>(5, 37 - first);
      const auto piece = values(source, {"w", first, rows, row});
      for (int64_t i = 0; i < rows * row; ++i)
        ASSERT_EQ(piece[i], whole[first * row + i]) << row << " " << first << " " << i;
    }
  }
}

TEST(SeededNormal, HasTheMomentsOfANormal) {
  const auto all = values(seeded_normal(1, 0.5), {"layer.weight", 0, 1000, 1000});
  double mean = 0, square = 0, fourth = 0, neighbours = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    mean += all[i], square += all[i] * all[i], fourth += std::pow(all[i], 4);
    if (i > 0) neighbours += all[i] * all[i - 1];
  }
  const auto n = static_cast<double>(all.size());
  EXPECT_NEAR(mean / n, 0.0, 0.5 * 4 / std::sqrt(n));
  EXPECT_NEAR(square / n, 0.25, 0.25 * 4 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n / std::pow(square / n, 2), 3.0, 0.05);
  EXPECT_NEAR(neighbours / n, 0.0, 0.25 * 4 / std::sqrt(n));
}

TEST(SeededNormal, DependsOnSeedAndName) {
  const auto first = values(seeded_normal(1), {"a", 0, 4, 4});
  EXPECT_EQ(first, values(seeded_normal(1), {"a", 0, 4, 4}));
  EXPECT_NE(first, values(seeded_normal(2), {"a", 0, 4, 4}));
  EXPECT_NE(first, values(seeded_normal(1), {"b", 0, 4, 4}));
}

TEST(SeededNormal, NormsAreOne) {
  for (const char* name : {"model.norm.weight", "model.layers.0.input_layernorm.weight"})
    EXPECT_EQ(values(seeded_normal(3), {name, 2, 3, 1}), std::vector<float>(3, 1.0F));
}

// The first weights of a seed are part of what a run means: they must not change by accident.
TEST(SeededNormal, IsPinned) {
  const auto first = values(seeded_normal(0), {"lm_head.weight", 0, 1, 2});
  EXPECT_FLOAT_EQ(first[0], -0.02377929F);
  EXPECT_FLOAT_EQ(first[1], -0.0028679504F);
}

}  // namespace
}  // namespace sherd
