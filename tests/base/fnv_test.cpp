#include "sherd/base/fnv.h"

#include <gtest/gtest.h>

namespace sherd {
namespace {

uint64_t hash_of(std::string_view text) {
  Fnv hash;
  hash.add(text);
  return hash.value();
}

TEST(Fnv, IsFnv1aOfBytes) {  // the published test vectors
  EXPECT_EQ(hash_of(""), 0xcbf29ce484222325ULL);
  EXPECT_EQ(hash_of("a"), 0xaf63dc4c8601ec8cULL);
  EXPECT_EQ(hash_of("foobar"), 0x85944171f73967e8ULL);
}

TEST(Fnv, AsADoubleKeepsTheUpperBits) {
  Fnv hash;
  EXPECT_EQ(hash.as_double(), static_cast<double>(0xcbf29ce484222ULL));
  hash.add(uint64_t{7});
  EXPECT_EQ(static_cast<uint64_t>(hash.as_double()), hash.value() >> 12);
}

}  // namespace
}  // namespace sherd
