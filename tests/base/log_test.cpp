#include "sherd/base/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>
#include <vector>

namespace sherd {
namespace {

TEST(Log, ALineGoesToStandardErrorWithItsPrefix) {
  ::testing::internal::CaptureStderr();
  log("rank {} of {}", 1, 2);
  log_line("braces {} are text here");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "sherd: rank 1 of 2\nsherd: braces {} are text here\n");
}

TEST(Log, LinesOfThreadsDoNotMix) {
  constexpr int kThreads = 4, kLines = 500;
  ::testing::internal::CaptureStderr();
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i) log_line(std::string(100, static_cast<char>('a' + t)));
      });
  }
  const std::string text = ::testing::internal::GetCapturedStderr();
  ASSERT_EQ(text.size(), kThreads * kLines * 108);
  for (size_t at = 0; at < text.size(); at += 108)
    ASSERT_EQ(text.substr(at, 108), "sherd: " + std::string(100, text[at + 7]) + "\n");
}

// Processes have no lock between them: a line must be one write, which a pipe takes whole.
TEST(Log, ALineIsOneWrite) {
  const int saved = dup(STDERR_FILENO);
  // A packet pipe hands out each write on its own.
  int packets[2];
  ASSERT_EQ(pipe2(packets, O_DIRECT), 0);
  dup2(packets[1], STDERR_FILENO);
  log("{} {}", "one line", std::string(2000, 'x'));
  dup2(saved, STDERR_FILENO);
  char text[4096] = {};
  const ssize_t bytes = read(packets[0], text, sizeof(text));
  EXPECT_EQ(bytes, 7 + 9 + 2000 + 1);
  for (const int fd : {packets[0], packets[1], saved}) close(fd);
}

}  // namespace
}  // namespace sherd
