#include "sherd/data/batch.h"

#include <gtest/gtest.h>

#include <fstream>
#include <vector>

namespace sherd {
namespace {

std::vector<int64_t> counts(int64_t rows, int world) {
  std::vector<int64_t> result;
  int64_t next = 0;
  for (int rank = 0; rank < world; ++rank) {
    const RowSplit split = split_rows(rows, rank, world);
    EXPECT_EQ(split.first, next) << "contiguous";
    next += split.count;
    result.push_back(split.count);
  }
  EXPECT_EQ(next, rows) << "complete";
  return result;
}

TEST(SplitRows, ContiguousAndNearEqual) {
  using Counts = std::vector<int64_t>;
  EXPECT_EQ(counts(4, 3), (Counts{2, 1, 1}));
  EXPECT_EQ(counts(4, 1), (Counts{4}));
  EXPECT_EQ(counts(8, 4), (Counts{2, 2, 2, 2}));
  EXPECT_EQ(counts(11, 4), (Counts{3, 3, 3, 2}));
  EXPECT_EQ(counts(2, 5), (Counts{1, 1, 0, 0, 0}));
  EXPECT_EQ(counts(0, 2), (Counts{0, 0}));
  EXPECT_THROW(split_rows(4, 3, 3), std::logic_error);
}

std::vector<uint16_t> golden_tokens() {
  std::ifstream file(SHERD_GOLDEN "/tiny/tokens.bin", std::ios::binary);
  std::vector<uint16_t> tokens(20 * 4 * 64 + 1);
  file.read(reinterpret_cast<char*>(tokens.data()), tokens.size() * 2);
  EXPECT_TRUE(file.good());
  return tokens;
}

// Row k of the golden run is tokens [k * 64, k * 64 + 64], whatever the number of ranks.
TEST(ReadBatch, GoldenRowsOnAnyNumberOfRanks) {
  const std::vector<uint16_t> expected = golden_tokens();
  const auto source = open_token_file(SHERD_GOLDEN "/tiny/tokens.bin", TokenType::uint16);
  const Sampler sampler(source->size(), {.context = 64, .rows = 4});
  for (int world : {1, 2, 3, 4, 5}) {
    for (int64_t step = 0; step < 20; ++step) {
      for (int rank = 0; rank < world; ++rank) {
        const RowSplit split = split_rows(4, rank, world);
        const Batch batch = read_batch(*source, sampler, step, 0, split);
        ASSERT_EQ(batch.tokens.sizes(), (std::vector<int64_t>{split.count, 64}));
        ASSERT_EQ(batch.targets.sizes(), (std::vector<int64_t>{split.count, 64}));
        ASSERT_EQ(batch.tokens.scalar_type(), at::kLong);
        ASSERT_TRUE(batch.tokens.is_contiguous() && batch.targets.is_contiguous());
        for (int64_t r = 0; r < split.count; ++r) {
          const int64_t k = step * 4 + split.first + r;
          for (int64_t i = 0; i < 64; ++i) {
            ASSERT_EQ(batch.tokens.data_ptr<int64_t>()[r * 64 + i], expected[k * 64 + i]);
            ASSERT_EQ(batch.targets.data_ptr<int64_t>()[r * 64 + i], expected[k * 64 + i + 1]);
          }
        }
      }
    }
  }
}

TEST(ReadBatch, ShuffledRowsAreRowsOfTheStream) {
  const auto source = synthetic_source(500, 1);
  const Sampler sampler(5003, {.context = 13, .rows = 5, .accumulate = 3, .order = Order::shuffled, .seed = 2});
  const Batch batch = read_batch(*source, sampler, 31, 2, {1, 3});
  for (int64_t r = 0; r < 3; ++r) {
    std::vector<int64_t> row(14);
    source->read(sampler.row_start(31, 2, 1 + r), 14, row.data());
    for (int64_t i = 0; i < 13; ++i) {
      EXPECT_EQ(batch.tokens.data_ptr<int64_t>()[r * 13 + i], row[i]);
      EXPECT_EQ(batch.targets.data_ptr<int64_t>()[r * 13 + i], row[i + 1]);
    }
  }
}

TEST(ReadBatch, ASamplerOfALongerStreamIsRefused) {
  const auto source = open_token_file(SHERD_GOLDEN "/tiny/tokens.bin", TokenType::uint16);
  const Sampler sampler(source->size() + 1, {.context = 64, .rows = 4});
  EXPECT_THROW(read_batch(*source, sampler, 0, 0, {0, 4}), std::logic_error);
}

}  // namespace
}  // namespace sherd
