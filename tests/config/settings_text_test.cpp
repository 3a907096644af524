#include "sherd/config/settings_text.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "sherd/config/json_file.h"
#include "sherd/config/settings.h"
#include "tests/config/schema.h"

namespace sherd {
namespace {

using nlohmann::json;

const std::string kRoot = SHERD_GOLDEN "/../..";

std::string file_text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(SettingsText, TheCheckedInFilesAreUpToDate) {
  EXPECT_TRUE(file_text(kRoot + "/docs/config.md") == settings_markdown())
      << "try build/sherd train --help-config=markdown > docs/config.md";
  EXPECT_TRUE(file_text(kRoot + "/docs/config.schema.json") == settings_schema())
      << "try build/sherd train --help-config=schema > docs/config.schema.json";
}

TEST(SettingsText, HelpSaysEverySettingWithinItsColumns) {
  const std::string help = settings_help();
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
  for (const Caller caller : {Caller::command, Caller::program})
    for (const std::string& path : setting_paths(caller))
      EXPECT_NE(help.find("\n  " + path), std::string::npos) << path;
  for (const SettingInfo& setting : described_settings()) {
    EXPECT_NE(help.find("\n" + std::string(setting.values.fields.empty() ? "  " : "") + setting.key),
              std::string::npos);
    EXPECT_TRUE(setting.sentence.ends_with('.')) << setting.key;
    for (const SettingInfo& field : setting.values.fields) EXPECT_TRUE(field.sentence.ends_with('.')) << field.key;
  }
}

TEST(SettingsText, OneSettingReadsAsASentence) {
  EXPECT_EQ(setting_values("transport"), "\"auto\", \"host\" or \"gloo\"");
  EXPECT_EQ(setting_values("reshard_after_forward"), "\"auto\", true or false");
  EXPECT_EQ(setting_values("loss_scale"), "\"auto\", an object, a number above 0 or null");
  EXPECT_EQ(setting_values("steps"), "an integer from 1 to 1000000000");
}

TEST(SettingsSchema, AllowsTheExamplesAndWhatIsWritten) {
  const json schema = json::parse(settings_schema());
  for (const auto& file : std::filesystem::directory_iterator(kRoot + "/examples"))
    if (file.path().extension() == ".json") {
      EXPECT_EQ(schema_mistake(schema, read_json_file(file.path()), file.path().filename()), "");
    }
  for (const Caller caller : {Caller::command, Caller::program})
    EXPECT_EQ(schema_mistake(schema, to_json(TrainConfig{}, caller), "defaults"), "");
}

TEST(SettingsSchema, RefusesWhatNoSettingMayBe) {
  const json schema = json::parse(settings_schema());
  for (const char* wrong :
       {R"({"stepz": 3})", R"({"steps": 0})", R"({"steps": 2.5})", R"({"optimizer": {"lr": -1}})",
        R"({"optimizer": {"betas": [0.9]}})", R"({"optimizer": {"betas": [0.9, 1]}})", R"({"strategy": "zero4"})",
        R"({"loss_scale": "on"})", R"({"loss_scale": {"windows": 1}})", R"({"units": []})", R"({"clip": 0})",
        R"({"optimizer": {"groups": [{"matches": ["a"]}]}})", R"({"reshard_after_forward": "true"})"})
    EXPECT_NE(schema_mistake(schema, json::parse(wrong), ""), "") << wrong;
}

TEST(Settings, EachPathIsThereOnce) {
  for (const Caller caller : {Caller::command, Caller::program}) {
    const auto& paths = setting_paths(caller);
    EXPECT_EQ(std::set<std::string>(paths.begin(), paths.end()).size(), paths.size());
  }
}

}  // namespace
}  // namespace sherd
