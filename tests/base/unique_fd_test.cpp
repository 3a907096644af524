#include "sherd/base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

namespace sherd {
namespace {

int open_null() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }
bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

TEST(UniqueFd, ClosesAtItsEnd) {
  const int fd = open_null();
  {
    const UniqueFd owner(fd);
    EXPECT_TRUE(owner);
    EXPECT_EQ(owner.get(), fd);
    EXPECT_TRUE(is_open(fd));
  }
  EXPECT_FALSE(is_open(fd));
}

TEST(UniqueFd, NothingIsNothing) {
  EXPECT_FALSE(UniqueFd());
  EXPECT_FALSE(UniqueFd(-1)) << "what a failed open returns";
  EXPECT_TRUE(UniqueFd(open_null()));
}

TEST(UniqueFd, MovesAndClosesOnce) {
  const int a = open_null(), b = open_null();
  UniqueFd first(a);
  UniqueFd second(std::move(first));
  EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): this is what is tested
  EXPECT_EQ(second.get(), a);
  second = UniqueFd(b);
  EXPECT_FALSE(is_open(a));
  EXPECT_TRUE(is_open(b));
  second = UniqueFd();
  EXPECT_FALSE(is_open(b));
}

}  // namespace
}  // namespace sherd
