#include "sherd/base/bytes.h"

#include <gtest/gtest.h>

namespace sherd {
namespace {

TEST(Bytes, RoundUpAndCeilDivAgreeWithCounting) {
  for (const int64_t unit : {1, 2, 3, 7, 256, 4096})
    for (int64_t value = 0; value < 3 * unit + 2; ++value) {
      int64_t units = 0;
      while (units * unit < value) ++units;
      ASSERT_EQ(ceil_div(value, unit), units);
      ASSERT_EQ(round_up(value, unit), units * unit);
    }
  static_assert(round_up(int64_t{1} << 40, 4096) == int64_t{1} << 40);
}

TEST(Bytes, FormatHasThreeDigitsOrMore) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(640), "640 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(10 * 1024), "10.0 KiB");
  EXPECT_EQ(format_bytes(12 << 20), "12.0 MiB");
  EXPECT_EQ(format_bytes(int64_t{3} << 29), "1.50 GiB");
  EXPECT_EQ(format_bytes(int64_t{1} << 40), "1.00 TiB");
  EXPECT_EQ(format_bytes(int64_t{5000} << 40), "5000.0 TiB") << "there is no larger unit";
}

}  // namespace
}  // namespace sherd
