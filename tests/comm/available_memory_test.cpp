#include "sherd/comm/available_memory.h"

#include <gtest/gtest.h>

#include <fstream>

namespace sherd {
namespace {

namespace fs = std::filesystem;

/// A file system with what a test writes into it.
class FakeRoot {
 public:
  FakeRoot() {
    std::string name = (fs::temp_directory_path() / "sherd-root-XXXXXX").string();
    root_ = mkdtemp(name.data());
  }
  ~FakeRoot() { fs::remove_all(root_); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;
  void write(const char* file, const char* text) const {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  std::optional<int64_t> available() const { return available_memory(root_); }

 private:
  fs::path root_;
};

TEST(AvailableMemory, IsUnknownWhereNoFileTells) { EXPECT_EQ(FakeRoot().available(), std::nullopt); }

TEST(AvailableMemory, IsTheSmallestOfTheMachineAndItsGroups) {
  const FakeRoot root;
  root.write("proc/meminfo", "MemTotal:       9000 kB\nMemFree: 10 kB\nMemAvailable:   8000 kB\n");
  EXPECT_EQ(root.available(), 8'192'000);
  root.write("proc/self/cgroup", "1:name=systemd:/x\n0::/job/step\n");
  root.write("sys/fs/cgroup/job/step/memory.max", "max\n");
  root.write("sys/fs/cgroup/job/step/memory.current", "5000\n");
  EXPECT_EQ(root.available(), 8'192'000) << "no limit there";
  root.write("sys/fs/cgroup/job/memory.max", "70000\n");
  root.write("sys/fs/cgroup/job/memory.current", "60000\n");
  EXPECT_EQ(root.available(), 10'000) << "a group above";
  root.write("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 5000\n");
  EXPECT_EQ(root.available(), 15'000) << "caches can go";
  root.write("sys/fs/cgroup/job/step/memory.max", "6000\n");
  EXPECT_EQ(root.available(), 1'000);
  root.write("sys/fs/cgroup/job/step/memory.current", "7000\n");
  EXPECT_EQ(root.available(), 0);
}

TEST(AvailableMemory, KnowsTheOldGroupsOfAContainer) {
  const FakeRoot root;
  root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000\n");
  root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2000\n");
  EXPECT_EQ(root.available(), 7'000);
}

TEST(AvailableMemory, OfThisMachineIsSomething) { EXPECT_GT(available_memory().value_or(0), 1 << 20); }

}  // namespace
}  // namespace sherd
