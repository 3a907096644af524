#include "sherd/memory/write_guard.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace sherd {
namespace {

constexpr int64_t kPage = 4096;

class WriteGuards : public ::testing::Test {
 protected:
  WriteGuards()
      : pages_(static_cast<std::byte*>(mmap(nullptr, 2 * kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~WriteGuards() override { munmap(pages_, 2 * kPage); }

  std::vector<GuardedRange> halves() {
    return {{pages_, kPage, "the first page"}, {pages_ + kPage, kPage, "the second page"}};
  }
  static void write_to(std::byte* address) { *const_cast<volatile std::byte*>(address) = std::byte{1}; }

  std::byte* pages_;
};

using WriteGuardsDeath = WriteGuards;

TEST_F(WriteGuards, FindTheRangeOfAnAddress) {
  const WriteGuard guard(halves());
  EXPECT_EQ(guard.find(pages_)->line, "the first page");
  EXPECT_EQ(guard.find(pages_ + kPage - 1)->line, "the first page");
  EXPECT_EQ(guard.find(pages_ + kPage)->line, "the second page");
  EXPECT_EQ(guard.find(pages_ + 2 * kPage), nullptr);
  EXPECT_EQ(guard.find(pages_ - 1), nullptr);
}

TEST_F(WriteGuardsDeath, NameWhatWasWrittenToAndLetTheSignalEndTheProcess) {
  const WriteGuard guard(halves());
  EXPECT_EXIT(write_to(pages_ + kPage + 7), ::testing::KilledBySignal(SIGSEGV), "the second page");
}

TEST_F(WriteGuardsDeath, AreSilentAboutOtherAddresses) {
  const WriteGuard guard({{pages_, kPage, "the first page"}});
  EXPECT_EXIT(write_to(pages_ + kPage), ::testing::KilledBySignal(SIGSEGV), "^$");
}

TEST_F(WriteGuardsDeath, AreSilentOnceTheyAreGone) {
  { const WriteGuard guard(halves()); }
  EXPECT_EXIT(write_to(pages_), ::testing::KilledBySignal(SIGSEGV), "^$");
}

TEST_F(WriteGuardsDeath, LeaveTheHandlerThatWasThereItsTurn) {
  const auto scenario = [this] {
    std::signal(SIGSEGV, [](int) { _exit(42); });
    const WriteGuard guard(halves());
    write_to(pages_);
  };
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // in a fresh process, where no guard has been yet
  EXPECT_EXIT(scenario(), ::testing::ExitedWithCode(42), "the first page");
}

TEST_F(WriteGuardsDeath, MoreThanCanSpeakDoNoHarm) {
  std::vector<std::unique_ptr<WriteGuard>> many;
  for (int i = 0; i < 100; ++i) many.push_back(std::make_unique<WriteGuard>(halves()));
  EXPECT_EXIT(write_to(pages_), ::testing::KilledBySignal(SIGSEGV), "the first page");
}

}  // namespace
}  // namespace sherd
