#include "sherd/data/find_files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/data/expect_config_error.h"
#include "tests/data/temporary_folder.h"

namespace sherd {
namespace {

class FindFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"b.py", "a.py", "c.txt", ".hidden.py", "sub/x.py", "sub/deep/y.py", "sub/deep/z.txt",
                             ".git/q.py", "odd[1].py", "empty/.keep"}) {
      folder_.write(name, "x");
    }
    std::filesystem::create_directory_symlink(folder_ / "sub", folder_ / "link");
    std::filesystem::create_symlink(folder_ / "a.py", folder_ / "sub/alias.py");
    std::filesystem::create_symlink(folder_ / "gone", folder_ / "sub/broken.py");
  }

  /// Paths found, relative to the folder.
  std::vector<std::string> find(std::vector<std::string> patterns) const {
    for (std::string& pattern : patterns) pattern = folder_ / pattern;
    std::vector<std::string> found = find_files(patterns);
    for (std::string& path : found) path = path.substr(folder_.path().size() + 1);
    return found;
  }

  using Names = std::vector<std::string>;
  TemporaryFolder folder_;
};

TEST_F(FindFiles, AFileIsItself) {
  EXPECT_EQ(find({"c.txt"}), Names{"c.txt"});
  EXPECT_EQ(find({"odd[1].py"}), Names{"odd[1].py"}) << "although it looks like a glob";
  EXPECT_EQ(find({".hidden.py"}), Names{".hidden.py"});
}

TEST_F(FindFiles, AFolderIsEverythingVisibleBelowIt) {
  EXPECT_EQ(find({""}), (Names{"a.py", "b.py", "c.txt", "odd[1].py", "sub/alias.py", "sub/deep/y.py", "sub/deep/z.txt",
                               "sub/x.py"}));
  EXPECT_EQ(find({"sub/deep/"}), (Names{"sub/deep/y.py", "sub/deep/z.txt"}));
  EXPECT_EQ(find({"link"}), (Names{"link/alias.py", "link/deep/y.py", "link/deep/z.txt", "link/x.py"}))
      << "a link that is named";
}

TEST_F(FindFiles, Globs) {
  EXPECT_EQ(find({"*.py"}), (Names{"a.py", "b.py", "odd[1].py"}));
  EXPECT_EQ(find({"[ab].p?"}), (Names{"a.py", "b.py"}));
  EXPECT_EQ(find({".h*"}), Names{".hidden.py"});
  EXPECT_EQ(find({"**/*.py"}), (Names{"a.py", "b.py", "odd[1].py", "sub/alias.py", "sub/deep/y.py", "sub/x.py"}));
  EXPECT_EQ(find({"s*/**/y.py"}), Names{"sub/deep/y.py"});
  EXPECT_EQ(find({"**/deep/**/**/*.txt"}), Names{"sub/deep/z.txt"});
  EXPECT_EQ(find({"*/deep"}), (Names{"link/deep/y.py", "link/deep/z.txt", "sub/deep/y.py", "sub/deep/z.txt"}));
}

TEST_F(FindFiles, KeepsTheOrderOfPatternsAndEachFileOnce) {
  EXPECT_EQ(find({"sub/x.py", "./c.txt", "*.py", "c.txt", "b.py"}),
            (Names{"sub/x.py", "c.txt", "a.py", "b.py", "odd[1].py"}));
}

TEST_F(FindFiles, RelativePatternsStayRelative) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder_.path());
  EXPECT_EQ(find_files({"[ab].py", "./sub/../c.txt"}), (Names{"a.py", "b.py", "c.txt"}));
  EXPECT_EQ(find_files({"**/y.py"}), Names{"sub/deep/y.py"});
  EXPECT_EQ(find_files({"sub/deep"}), (Names{"sub/deep/y.py", "sub/deep/z.txt"}));
  std::filesystem::current_path(before);
}

TEST_F(FindFiles, NothingFoundIsAConfigError) {
  for (const char* pattern : {"none", "*.rs", "none/*.py", "a.py/*", "empty", "sub/broken.py"}) {
    expect_config_error([&] { find({pattern}); }, {pattern, "names no file"});
  }
  expect_config_error([&] { find_files({""}); }, {"''"});
}

TEST_F(FindFiles, AFolderThatCannotBeListedIsAConfigError) {
  using std::filesystem::perms;
  constexpr uid_t kNobody = 65534;
  const uid_t before = ::geteuid();
  std::filesystem::permissions(folder_.path(), perms::all);
  std::filesystem::permissions(folder_ / "sub/deep", perms::none);
  if (before == 0) {
    ASSERT_EQ(::seteuid(kNobody), 0);  // root may list everything
  }
  expect_config_error([&] { find({""}); }, {"sub/deep", "listed"});
  expect_config_error([&] { find({"**/*.py"}); }, {"sub/deep", "listed"});
  ASSERT_EQ(::seteuid(before), 0);
  std::filesystem::permissions(folder_ / "sub/deep", perms::owner_all);
}

}  // namespace
}  // namespace sherd
