#include "sherd/train/run_folder.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "sherd/base/error.h"

namespace sherd {
namespace {
namespace fs = std::filesystem;

std::string read(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

std::string config_error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

class RunFolderTest : public ::testing::Test {
 protected:
  RunFolderTest() {
    std::string pattern = (fs::temp_directory_path() / "sherd-run-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
  }
  ~RunFolderTest() override { fs::remove_all(root_); }

  std::string path(const std::string& name) const { return (root_ / name).string(); }
  size_t entries() const { return std::distance(fs::directory_iterator(root_), fs::directory_iterator()); }

  fs::path root_;
};

TEST_F(RunFolderTest, WritesConfigurationAndOneLineAStep) {
  RunFolder folder(path("a/b/run"), {{"steps", 3}});
  EXPECT_EQ(nlohmann::json::parse(read(folder.path() + "/config.json")), nlohmann::json({{"steps", 3}}));
  EXPECT_EQ(read(folder.path() + "/metrics.jsonl"), "");
  folder.append({{"step", 1}, {"loss", 2.5}});
  EXPECT_EQ(read(folder.path() + "/metrics.jsonl"), "{\"loss\":2.5,\"step\":1}\n") << "must be in the file at once";
  folder.append({{"step", 2}, {"memory", {{"parameters", 7}}}});
  EXPECT_EQ(read(folder.path() + "/metrics.jsonl"),
            "{\"loss\":2.5,\"step\":1}\n{\"memory\":{\"parameters\":7},\"step\":2}\n");
  folder.write_loss_curve("<svg/>");
  EXPECT_EQ(read(folder.path() + "/loss.svg"), "<svg/>");
}

TEST_F(RunFolderTest, ANotFiniteLossIsStillValidJson) {
  RunFolder folder(path("run"), {});
  folder.append({{"loss", std::numeric_limits<double>::quiet_NaN()}});
  EXPECT_TRUE(nlohmann::json::parse(read(folder.path() + "/metrics.jsonl"))["loss"].is_null());
}

TEST_F(RunFolderTest, TheModelAppearsWhole) {
  RunFolder folder(path("run"), {});
  for (const std::string content : {"first", "second"}) {
    const std::string partial = folder.begin_model();
    EXPECT_TRUE(fs::is_empty(partial));
    std::ofstream(partial + "/config.json") << content;
    EXPECT_EQ(fs::exists(folder.model_path()), content == "second");
    folder.finish_model();
    EXPECT_EQ(read(folder.model_path() + "/config.json"), content);
    EXPECT_FALSE(fs::exists(partial));
  }
}

TEST_F(RunFolderTest, ALaterRunReplacesMetricsAndKeepsTheModelUntilItHasItsOwn) {
  {
    RunFolder folder(path("run"), {{"seed", 1}});
    folder.append({{"step", 1}});
    std::ofstream(folder.begin_model() + "/weights") << "old";
    folder.finish_model();
    std::ofstream(folder.begin_model() + "/weights") << "of a save that never ended";
  }
  RunFolder folder(path("run"), {{"seed", 2}});
  EXPECT_EQ(read(folder.path() + "/metrics.jsonl"), "");
  EXPECT_EQ(nlohmann::json::parse(read(folder.path() + "/config.json"))["seed"], 2);
  EXPECT_EQ(read(folder.model_path() + "/weights"), "old");
  EXPECT_TRUE(fs::is_empty(folder.begin_model()));
}

TEST_F(RunFolderTest, TwoRunsCannotShareAFolder) {
  {
    const RunFolder first(path("run"), {});
    EXPECT_NE(config_error_of([&] { RunFolder(path("run"), {}); }).find("another run"), std::string::npos);
    EXPECT_NE(config_error_of([&] { RunFolder::check(path("run")); }).find("another run"), std::string::npos);
  }
  EXPECT_NO_THROW(RunFolder::check(path("run")));
}

TEST_F(RunFolderTest, AFileInTheWayIsNamed) {
  std::ofstream(root_ / "file") << "content";
  for (const std::string& target : {path("file"), path("file/below/run")}) {
    for (const std::string& message :
         {config_error_of([&] { RunFolder(target, {}); }), config_error_of([&] { RunFolder::check(target); })}) {
      EXPECT_NE(message.find("'" + path("file") + "' is a file"), std::string::npos) << message;
      EXPECT_NE(message.find("output"), std::string::npos) << message;
    }
  }
  EXPECT_EQ(read(root_ / "file"), "content");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(RunFolderTest, APlaceThatCannotBeWrittenIsNamed) {
  for (const std::string& target : {std::string("/proc/sherd/run"), std::string("/sys/sherd-run")}) {
    EXPECT_NE(config_error_of([&] { RunFolder(target, {}); }).find(target), std::string::npos);
    EXPECT_NE(config_error_of([&] { RunFolder::check(target); }).find(target), std::string::npos);
  }
  if (::geteuid() == 0) return;  // permission bits do not bind root
  fs::create_directory(root_ / "read-only");
  fs::permissions(root_ / "read-only", fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_NE(config_error_of([&] { RunFolder(path("read-only"), {}); }).find("read-only"), std::string::npos);
  EXPECT_NE(config_error_of([&] { RunFolder(path("read-only/run"), {}); }).find("read-only/run"), std::string::npos);
  fs::permissions(root_ / "read-only", fs::perms::owner_all);
}

TEST_F(RunFolderTest, AFolderThatNoRunWroteIsNotOverwritten) {
  fs::create_directory(root_ / "model");
  std::ofstream(root_ / "model/config.json") << "{\"model_type\": \"llama\"}";
  EXPECT_NE(config_error_of([&] { RunFolder(path("model"), {}); }).find("not of a training run"), std::string::npos);
  EXPECT_NE(config_error_of([&] { RunFolder::check(path("model")); }).find("not of a training run"), std::string::npos);
  EXPECT_EQ(read(root_ / "model/config.json"), "{\"model_type\": \"llama\"}");
}

TEST_F(RunFolderTest, CheckingLeavesNothing) {
  RunFolder::check(path("a/b/run"));
  EXPECT_EQ(entries(), 0u);
  RunFolder::check(path("trailing/"));
  EXPECT_EQ(entries(), 0u);
  { RunFolder(path("run"), {{"seed", 1}}).append({{"step", 1}}); }
  const std::string before = read(root_ / "run/metrics.jsonl");
  RunFolder::check(path("run"));
  EXPECT_EQ(read(root_ / "run/metrics.jsonl"), before);
  EXPECT_FALSE(fs::exists(root_ / "run/config.json.partial"));
}

TEST_F(RunFolderTest, AnEmptyPathIsRefused) {
  EXPECT_NE(config_error_of([] { RunFolder::check(""); }).find("empty path"), std::string::npos);
}

TEST_F(RunFolderTest, AFailedStartRemovesWhatItMade) {
  fs::create_directories(root_ / "run/config.json.partial");  // cannot be opened as a file
  EXPECT_NE(config_error_of([&] { RunFolder(path("run"), {}); }).find("run"), std::string::npos);
  EXPECT_FALSE(fs::exists(root_ / "run/metrics.jsonl"));
}

TEST_F(RunFolderTest, AVanishedFolderIsAFault) {
  RunFolder folder(path("run"), {});
  fs::remove_all(path("run"));
  EXPECT_THROW(folder.write_loss_curve("<svg/>"), FaultError);
  EXPECT_THROW(folder.begin_model(), FaultError);
  EXPECT_THROW(folder.finish_model(), FaultError);
}

}  // namespace
}  // namespace sherd
