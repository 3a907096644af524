#include "sherd/data/split.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/data/expect_config_error.h"
#include "tests/data/temporary_folder.h"

namespace sherd {
namespace {

TEST(Split, TakesValidationFromTheEnd) {
  const TemporaryFolder folder;
  std::vector<uint16_t> ids(101);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint16_t>(i);
  const auto source = open_token_file(folder.write_ids("ids", ids), TokenType::uint16);
  for (double share : {0.1, 0.25, 0.5, 0.9}) {
    const Split split = split_source(source, share, 4);
    const int64_t held = static_cast<int64_t>(std::floor(101 * share));
    ASSERT_EQ(split.validation->size(), held);
    ASSERT_EQ(split.train->size(), 101 - held);
    std::vector<int64_t> got(101);
    split.train->read(0, 101 - held, got.data());
    split.validation->read(0, held, got.data() + 101 - held);
    EXPECT_TRUE(std::equal(got.begin(), got.end(), ids.begin()));
    split.validation->read(held - 1, 1, got.data());
    EXPECT_EQ(got[0], 100);
    EXPECT_THROW(split.train->read(100 - held, 2, got.data()), std::logic_error);
    EXPECT_EQ(split.train->vocab_bound(), 65536);
  }
}

TEST(Split, NoShareIsTheWholeStream) {
  const auto source = synthetic_source(10, 0);
  const Split split = split_source(source, 0, 8);
  EXPECT_EQ(split.train, source);
  EXPECT_EQ(split.validation, nullptr);
}

TEST(Split, AnEndlessStreamHasAnEnd) {
  const auto source = synthetic_source(10, 0);
  const Split split = split_source(source, 0.01, 8);
  EXPECT_EQ(split.train->size() + split.validation->size(), source->size());
  int64_t token = -1;
  split.validation->read(split.validation->size() - 1, 1, &token);
  EXPECT_TRUE(token >= 0 && token < 10);
}

TEST(Split, EachPartMustHoldARow) {
  const TemporaryFolder folder;
  const auto source = open_text({folder.write("a", std::string(100, 'x'))});
  EXPECT_EQ(split_source(source, 0.1, 9).train->kind(), TokenKind::bytes);
  expect_config_error([&] { split_source(source, 0.1, 10); }, {"10 validation tokens", "11", "data.validation"});
  expect_config_error([&] { split_source(source, 0.9, 10); }, {"10 training tokens", "data.validation"});
  expect_config_error([&] { split_source(source, 0, 100); }, {"100 training tokens", "101", "data.context"});
  for (double share : {-0.1, 1.0, 2.0, std::numeric_limits<double>::quiet_NaN()}) {
    expect_config_error([&] { split_source(source, share, 1); }, {"data.validation", "below 1"});
  }
}

}  // namespace
}  // namespace sherd
