#include "sherd/memory/write_guard.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>

namespace sherd {
namespace {

using Names = std::vector<std::string>;
constexpr int64_t kPage = 4096;

/// Two pages of a file that others may write, mapped private and read-only.
class WriteGuards : public ::testing::Test {
 protected:
  WriteGuards() : file_(memfd_create("guarded", 0)) {
    EXPECT_EQ(ftruncate(file_, 2 * kPage), 0);
    pages_ = map(nullptr, 0);
  }
  ~WriteGuards() override {
    munmap(pages_, 2 * kPage);
    close(file_);
  }

  std::byte* map(void* at, int fixed) const {
    return static_cast<std::byte*>(mmap(at, 2 * kPage, PROT_READ, MAP_PRIVATE | fixed, file_, 0));
  }
  std::vector<GuardedRange> halves() const {
    return {{pages_, kPage, "the first page"}, {pages_ + kPage, kPage, "the second page"}};
  }
  char in_file(int64_t at) const {
    char value = 0;
    EXPECT_EQ(pread(file_, &value, 1, at), 1);
    return value;
  }
  static void write_to(std::byte* address) { *const_cast<volatile std::byte*>(address) = std::byte{1}; }

  int file_;
  std::byte* pages_;
};

Names names(const std::vector<GuardedRange>& ranges) {
  Names result;
  for (const auto& range : ranges) result.push_back(range.name);
  return result;
}

using WriteGuardsDeath = WriteGuards;

TEST_F(WriteGuards, NameWhatWasWrittenToOnce) {
  WriteGuard guard(halves());
  EXPECT_FALSE(guard.written());
  write_to(pages_ + kPage + 7);
  EXPECT_TRUE(guard.written());
  EXPECT_EQ(names(guard.take_written()), Names{"the second page"});
  EXPECT_FALSE(guard.written());
  EXPECT_EQ(names(guard.take_written()), Names{});
}

TEST_F(WriteGuards, KeepTheWriteFromTheFile) {
  WriteGuard guard(halves());
  write_to(pages_ + 3);
  EXPECT_EQ(pages_[3], std::byte{1});
  EXPECT_EQ(in_file(3), 0);
  map(pages_, MAP_FIXED);
  EXPECT_EQ(pages_[3], std::byte{0});
  guard.take_written();
  write_to(pages_ + 3);
  EXPECT_EQ(names(guard.take_written()), Names{"the first page"});
}

TEST_F(WriteGuards, NameAllThatMayHaveBeenWrittenToOnAPage) {
  WriteGuard guard({{pages_, 100, "a"}, {pages_ + 100, kPage, "b"}, {pages_ + kPage + 100, 100, "c"}});
  write_to(pages_ + 7);
  write_to(pages_ + 107);  // on a page that is a copy by now
  EXPECT_EQ(names(guard.take_written()), (Names{"a", "b"}));
}

TEST_F(WriteGuards, FindTheirOwnAmongMany) {
  std::vector<std::unique_ptr<WriteGuard>> others;
  for (int i = 0; i < 20; ++i) others.push_back(std::make_unique<WriteGuard>(std::vector<GuardedRange>()));
  WriteGuard guard(halves());
  write_to(pages_);
  EXPECT_EQ(names(guard.take_written()), Names{"the first page"});
}

TEST_F(WriteGuardsDeath, LetOtherAddressesEndTheProcess) {
  const WriteGuard guard({{pages_, kPage, "the first page"}});
  EXPECT_EXIT(write_to(pages_ + kPage), ::testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(WriteGuardsDeath, DoNothingOnceTheyAreGone) {
  { const WriteGuard guard(halves()); }
  EXPECT_EXIT(write_to(pages_), ::testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(WriteGuardsDeath, LeaveTheHandlerThatWasThereItsTurn) {
  const auto scenario = [this] {
    std::signal(SIGSEGV, [](int) { _exit(42); });
    const WriteGuard guard({{pages_, kPage, "the first page"}});
    write_to(pages_ + kPage);
  };
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // in a fresh process, where no guard has been yet
  EXPECT_EXIT(scenario(), ::testing::ExitedWithCode(42), "");
}

TEST_F(WriteGuardsDeath, MoreThanCanWorkDoNoHarm) {
  std::vector<std::unique_ptr<WriteGuard>> many;
  for (int i = 0; i < 300; ++i) many.push_back(std::make_unique<WriteGuard>(std::vector<GuardedRange>()));
  const WriteGuard guard(halves());
  EXPECT_EXIT(write_to(pages_), ::testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace sherd
