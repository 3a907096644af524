// A table of a struct's own: what the real one is made of.
#include "sherd/config/setting.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "sherd/config/section.h"
#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

using nlohmann::json;

enum class Door { shut, open };
enum class Wall { brick, wood };
constexpr Name<Wall> kWallNames[] = {{Wall::brick, "brick"}, {Wall::wood, "wood"}};
constexpr Name<Door> kDoorWords[] = {{Door::shut, "auto"}, {Door::open, "true"}};

struct Room {
  int64_t windows = 2;
  int64_t chairs = 0;
  std::optional<int64_t> tables;
  std::optional<double> height = 2.5;
  Door door = Door::shut, hatch = Door::shut;
  Wall wall = Wall::wood;
  std::string name = "a";
  std::vector<std::string> things;
  double low = 0, high = 1;
};

struct House {
  Room room;
  int64_t floors = 1;
};

std::vector<Setting<House>> house_settings() {
  const std::vector<Setting<Room>> room = {
      {"windows", &Room::windows, integers({.min = 0, .max = 9}), "Windows."},
      {"chairs", &Room::chairs, integers().or_auto(), "Chairs."},
      {"tables", &Room::tables, integers().or_unset(), "Tables."},
      {"height", &Room::height, numbers(kPositive).or_null(), "Metres."},
      {"door", &Room::door, boolean(), "Whether it is open."},
      {"hatch", &Room::hatch, kDoorWords, "Whether it is open."},
      {"wall", &Room::wall, kWallNames, "What it is of."},
      {"name", &Room::name, text("a name"), "What it is called."},
      {"things", &Room::things, some_texts("things", "lamp").or_unset(), "What is in it."},
      {"range", &Room::low, &Room::high, pair_of(kShare), "From and to."},
  };
  return {section<House>("room", &House::room, room, "The room."),
          {"floors", &House::floors, integers(), "Floors."},
          only_for(Caller::program, Setting<House>("lift", &House::floors, integers(), "Not for all."))};
}

House read(const json& document, Caller caller = Caller::command) {
  House house;
  JsonReader reader(document, "");
  read_fields(reader, {caller, {}}, house_settings(), house);
  return house;
}

json written(const House& house, Caller caller = Caller::command) {
  json out = json::object();
  write_fields(out, caller, house_settings(), house);
  return out;
}

TEST(Setting, DefaultsAreTheStructs) {
  EXPECT_EQ(written(read(json::object())), written(House{}));
  const json room = {{"windows", 2},    {"chairs", "auto"}, {"height", 2.5}, {"door", false},
                     {"hatch", "auto"}, {"wall", "wood"},   {"name", "a"},   {"range", {0.0, 1.0}}};
  EXPECT_EQ(written(House{}), (json{{"room", room}, {"floors", 1}}));
  const auto settings = house_settings();
  const auto& fields = settings[0].info.values.fields;
  EXPECT_EQ(fields[0].preset, "2");
  EXPECT_EQ(fields[1].preset, "\"auto\"");
  EXPECT_EQ(fields[2].preset, "");
  EXPECT_EQ(settings[0].info.preset, "");
}

TEST(Setting, EachTypeGoesBothWays) {
  const json room = {{"windows", 0},  {"chairs", 4},     {"tables", 5}, {"height", nullptr}, {"door", true},
                     {"hatch", true}, {"wall", "brick"}, {"name", "b"}, {"things", {"x"}},   {"range", {0.25, 0.5}}};
  const House house = read({{"room", room}, {"floors", 3}});
  EXPECT_EQ(house.room.tables, 5);
  EXPECT_EQ(house.room.height, std::nullopt);
  EXPECT_EQ(house.room.door, Door::open);
  EXPECT_EQ(house.room.hatch, Door::open);
  EXPECT_EQ(house.room.wall, Wall::brick);
  EXPECT_EQ(house.room.high, 0.5);
  EXPECT_EQ(written(house), (json{{"room", room}, {"floors", 3}}));
  EXPECT_EQ(read({{"room", {{"tables", nullptr}, {"things", nullptr}}}}).room.tables, std::nullopt);
}

TEST(Setting, MistakesNameWhatIsAllowed) {
  const auto refused = [](const char* room, const std::vector<std::string>& words) {
    expect_config_error([&] { read({{"room", json::parse(room)}}); }, words);
  };
  refused(R"({"windows": 10})", {"got 10 for 'room.windows'", "from 0 to 9", "try 2"});
  refused(R"({"tables": 0})", {"'room.tables'", "try 1"});
  refused(R"({"height": 0})", {"'room.height'", "above 0"});
  refused(R"({"hatch": false})", {"got false for 'room.hatch', expected \"auto\" or true; try \"auto\""});
  refused(R"({"wall": "woods"})", {"brick, wood", "try \"wood\""});
  refused(R"({"things": []})", {"an array of 0 for 'room.things', expected things; try [\"lamp\"]"});
  refused(R"({"range": [0, 1]})", {"got 1 for 'room.range[1]'", "below 1"});
  refused(R"({"range": 1})", {"an array of two numbers", "try [0, 1]"});
  refused(R"({"window": 1})", {"unknown key 'room.window'", "try 'windows'"});
}

TEST(Setting, BelongsToItsCaller) {
  EXPECT_EQ(read({{"lift", 7}}, Caller::program).floors, 7);
  EXPECT_TRUE(written({}, Caller::program).contains("lift"));
  expect_config_error([] { read({{"lift", 7}}); }, {"got 'lift' in the command's configuration", "sherd.initialize"});
}

}  // namespace
}  // namespace sherd
