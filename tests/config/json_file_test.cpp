#include "sherd/config/json_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/data/expect_config_error.h"
#include "tests/data/temporary_folder.h"

namespace sherd {
namespace {

using nlohmann::json;

TEST(ParseJson, GoodDocuments) {
  EXPECT_EQ(parse_json(R"( {"a": [1, {"b": null}], "c": {"a": 1}} )", "x"),
            json::parse(R"({"a":[1,{"b":null}],"c":{"a":1}})"));
  EXPECT_EQ(parse_json("\xef\xbb\xbf{}", "x"), json::object()) << "a byte order mark";
  EXPECT_EQ(parse_json(R"([{"a": 1}, {"a": 2}])", "x").size(), 2u);
}

TEST(ParseJson, ErrorsNameFileLineAndColumn) {
  const auto expect = [](const char* text, const std::vector<std::string>& words) {
    SCOPED_TRACE(text);
    expect_config_error([&] { parse_json(text, "c.json"); }, words);
  };
  expect("{\"a\": 1,\n \"b\": oops}", {"c.json, line 2, column 7", "invalid literal"});
  expect("{\n\n  \"a\" 1}", {"c.json, line 3, column 7", "unexpected number literal"});
  expect("{\"a\": 1,}", {"c.json, line 1, column 9"});
  expect("", {"c.json, line 1, column 1", "end of input"});
  expect("{\"a\": 1", {"c.json, line 1, column 8", "end of input"});
  expect("{} {}", {"c.json, line 1, column 4"});
  expect("// note\n{}", {"c.json, line 1"});
  expect("{\"lr\":\n 1e999}", {"c.json, line 2", "1e999"});
  expect("{\"a\": \"\xff\"}", {"c.json, line 1, column 8", "UTF-8"});
  expect("{\"a\": NaN}", {"column 7"});
  expect(R"({"a": {"lr": 1, "b": 2, "lr": 3}})", {"the key 'lr' twice"});
  expect(std::string(100000, '[').c_str(), {"nesting"});
}

TEST(ReadJsonFile, Errors) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_json_file(folder.write("a.json", "{\"a\": 1}"))["a"], 1);
  expect_config_error([&] { read_json_file(folder / "none.json"); }, {"none.json", "No such file"});
  expect_config_error([&] { read_json_file(folder.path()); }, {folder.path(), "readable JSON file"});
  expect_config_error([&] { read_json_file(folder.write("big", std::string(17 << 20, ' '))); }, {"16 MiB"});
  expect_config_error([&] { read_json_file(folder.write("bad", "{")); }, {"/bad, line 1, column 2"});
}

TEST(ApplyOverride, SetsAndCreates) {
  json document = {{"a", {{"b", 1}}}, {"n", nullptr}};
  for (const char* assignment : {"a.b=2", "a.c.d=[1, 2]", "n.x=true", "text=zero3", "quoted=\"3\"",
                                 "empty=", "twice={\"a\":1,\"a\":2}", "equals=x=y", "a.c.e=1.5"}) {
    apply_override(document, assignment);
  }
  EXPECT_EQ(document, json::parse(R"({"a": {"b": 2, "c": {"d": [1, 2], "e": 1.5}}, "n": {"x": true}, "text": "zero3",
    "quoted": "3", "empty": "", "twice": "{\"a\":1,\"a\":2}", "equals": "x=y"})"));
}

TEST(ApplyOverride, Errors) {
  json document = {{"strategy", "ddp"}, {"list", {1, 2}}};
  const json before = document;
  const auto expect = [&](const char* assignment, const std::vector<std::string>& words) {
    expect_config_error([&] { apply_override(document, assignment); }, words);
  };
  expect("steps", {"--set 'steps'", "KEY=VALUE"});
  expect("=3", {"KEY=VALUE"});
  expect("a..b=3", {"empty key"});
  expect(".a=3", {"empty key"});
  expect("strategy.x=3", {"'strategy' is not an object", "'x'"});
  expect("list.0=3", {"'list' is not an object"});
  json array = json::array();
  expect_config_error([&] { apply_override(array, "a=3"); }, {"not an object"});
  EXPECT_EQ(document["strategy"], before["strategy"]);
}

}  // namespace
}  // namespace sherd
