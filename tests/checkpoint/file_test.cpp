#include "sherd/checkpoint/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "sherd/base/error.h"
#include "tests/checkpoint/temporary_folder.h"

namespace sherd {
namespace {

// Makes files larger than `bytes` fail with EFBIG, as a full disk fails with ENOSPC.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST(File, ReadsWhatWasWrittenAtItsPlace) {
  const TemporaryFolder folder;
  auto file = File::create(folder / "f");
  file.reserve(10);
  EXPECT_EQ(file.size(), 10U);
  file.write("abc", 3, 4);
  file.sync();
  char text[3];
  File::open_for_reading(folder / "f").read(text, 3, 4);
  EXPECT_EQ(std::string(text, 3), "abc");
}

TEST(File, OpeningIsTheUsersMistake) {
  const TemporaryFolder folder;
  write_bytes(folder / "f", "x");
  EXPECT_NE(error_of<ConfigError>([&] { File::open_for_reading(folder / "none"); }).find(folder / "none"),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { File::open_for_reading(folder.path()); }).find(folder.path()),
            std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { File::create(folder / "f/below"); }).find("f/below"), std::string::npos);
  EXPECT_NE(error_of<ConfigError>([&] { File::open_for_writing(folder / "none"); }), "");
  EXPECT_NE(error_of<ConfigError>([&] { write_text("/proc/no/such", "x"); }), "");
}

TEST(File, ReadingPastTheEndIsAFault) {
  const TemporaryFolder folder;
  write_bytes(folder / "f", "12345");
  const auto file = File::open_for_reading(folder / "f");
  char text[6];
  EXPECT_NE(error_of<FaultError>([&] { file.read(text, 6, 0); }).find("expected 1 more byte"), std::string::npos);
}

TEST(File, AFullDiskIsAFaultThatNamesTheFile) {
  const TemporaryFolder folder;
  const std::string text(8192, 'x');
  const FileSizeLimit limit(4096);
  auto file = File::create(folder / "f");
  EXPECT_NE(error_of<FaultError>([&] { file.reserve(8192); }).find(folder / "f"), std::string::npos);
  // The first 4096 bytes fit: a short write, and then the error.
  EXPECT_NE(error_of<FaultError>([&] { file.write(text.data(), text.size(), 0); }).find("writing at byte 4096"),
            std::string::npos);
  EXPECT_NE(error_of<FaultError>([&] { write_text(folder / "g", text); }), "");
  EXPECT_FALSE(std::filesystem::exists(folder / "g"));
  EXPECT_FALSE(std::filesystem::exists(folder / "g.partial"));
}

TEST(File, WriteTextReplaces) {
  const TemporaryFolder folder;
  write_text(folder / "f", "one");
  write_text(folder / "f", "two");
  EXPECT_EQ(read_text(folder / "f"), "two");
  EXPECT_FALSE(std::filesystem::exists(folder / "f.partial"));
  EXPECT_NE(error_of<FaultError>([&] { rename_durably(folder / "none", folder / "f"); }), "");
}

}  // namespace
}  // namespace sherd
