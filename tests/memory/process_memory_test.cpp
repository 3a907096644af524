#include "sherd/memory/process_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

namespace sherd {
namespace {

constexpr int64_t kTouchedBytes = int64_t{64} << 20;
constexpr double kTolerance = 0.2 * kTouchedBytes;

/// Memory that is touched, and unmapped at the end.
class Touched {
 public:
  explicit Touched(int flags)
      : data_(mmap(nullptr, kTouchedBytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)) {
    std::memset(data_, 1, kTouchedBytes);
  }
  Touched(const Touched&) = delete;
  Touched& operator=(const Touched&) = delete;
  ~Touched() { munmap(data_, kTouchedBytes); }
  void* data() const { return data_; }

 private:
  void* data_;
};

TEST(ProcessMemory, FollowsWhatIsTouched) {
  const int64_t before = proportional_memory();
  EXPECT_GT(before, 0);
  {
    const Touched memory(MAP_PRIVATE);
    EXPECT_NEAR(static_cast<double>(proportional_memory() - before), kTouchedBytes, kTolerance);
  }
  EXPECT_NEAR(static_cast<double>(proportional_memory() - before), 0, kTolerance);
}

TEST(ProcessMemory, SharedPagesAreDividedByTheirUsers) {
  const int64_t before = proportional_memory();
  const Touched memory(MAP_SHARED);
  int ready[2], finish[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(finish), 0);
  const pid_t child = fork();
  char byte = 0;
  if (child == 0) {
    volatile char sum = 0;
    for (int64_t i = 0; i < kTouchedBytes; i += 4096)
      sum = static_cast<char>(sum + static_cast<const char*>(memory.data())[i]);
    const bool told = write(ready[1], &byte, 1) == 1 && read(finish[0], &byte, 1) == 1;
    _exit(told ? 0 : 1);
  }
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  const int64_t with_two = proportional_memory() - before;
  ASSERT_EQ(write(finish[1], &byte, 1), 1);
  waitpid(child, nullptr, 0);
  // The child shares this process' other pages too, so a little less than half of the 64 MiB is seen here.
  EXPECT_LT(static_cast<double>(with_two), kTouchedBytes / 2 + kTolerance);
  EXPECT_NEAR(static_cast<double>(proportional_memory() - before), kTouchedBytes, kTolerance);
  for (const int fd : {ready[0], ready[1], finish[0], finish[1]}) close(fd);
}

}  // namespace
}  // namespace sherd
