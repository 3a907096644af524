// Damaged documents by the thousand, from a fixed seed: whatever is in them, only ConfigError may come out, and what is
// accepted must survive a round trip.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "sherd/base/error.h"
#include "sherd/config/json_file.h"
#include "sherd/config/settings.h"
#include "sherd/config/settings_text.h"
#include "sherd/config/train_config.h"
#include "tests/config/schema.h"

namespace sherd {
namespace {

using nlohmann::json;

class Fuzz {
 public:
  explicit Fuzz(uint32_t seed) : random_(seed) {}

  const json& any_of(const std::vector<json>& documents) { return documents[below(documents.size())]; }

  size_t below(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random_); }

  /// Something that the values allow, though perhaps not beside others.
  json allowed(const Values& values) {
    using Kind = Values::Kind;
    if (values.null == Values::Null::value && below(6) == 0) return nullptr;
    if (!values.instead.empty() && below(4) == 0) return values.instead;
    if (!values.alternatives.empty() && below(3) == 0) return allowed(values.alternatives[0]);
    const char* const texts[] = {"cpu", "full", "every:2", "*norm*", SHERD_GOLDEN "/tiny/tokens.bin"};
    switch (values.kind) {
      case Kind::integer:
        return values.integers.min + static_cast<int64_t>(below(20));
      case Kind::number:
        return number_in(values.numbers);
      case Kind::boolean:
        return below(2) == 0;
      case Kind::text:
        return texts[below(std::size(texts))];
      case Kind::texts:
        return json::array({texts[below(std::size(texts))], "*.txt"});
      case Kind::pair:
        return json::array({number_in(values.numbers), number_in(values.numbers)});
      case Kind::word: {
        const std::string& word = values.words[below(values.words.size())];
        return word == "true" || word == "false" ? json(word == "true") : json(word);
      }
      case Kind::object:
      case Kind::objects: {
        json object = json::object();
        for (const SettingInfo& field : values.fields)
          if (below(3) > 0) object[field.key] = allowed(field.values);
        return values.kind == Kind::object ? object : json::array({object});
      }
    }
    return nullptr;
  }

  double number_in(NumberRange range) {
    const double least = std::max(range.min, -10.0), most = std::min(range.max, 10.0);
    return least + (most - least) * std::uniform_real_distribution<double>(0.01, 0.99)(random_);
  }

  json value() {
    switch (below(16)) {
      case 0:
        return nullptr;
      case 1:
        return below(2) == 0;
      case 2:
        return json::array();
      case 3:
        return json::object();
      case 4:
        return "auto";
      case 5:
        return "";
      case 6:
        return std::string(below(300), 'x');
      case 7:
        return std::string("\xc3\x28\0\n", 1 + below(4));
      case 8:
        return std::numeric_limits<double>::quiet_NaN();
      case 9:
        return below(2) == 0 ? HUGE_VAL : -HUGE_VAL;
      case 10:
        return std::numeric_limits<uint64_t>::max();
      case 11:
        return std::numeric_limits<int64_t>::min();
      case 12:
        return static_cast<int64_t>(below(5)) - 2;
      case 13:
        return 1e308 * (static_cast<double>(below(3)) - 1);
      case 14:
        return json::array({value(), value()});
      default:
        return {{key(), value()}};
    }
  }

  std::string key() {
    const char* const keys[] = {"lr", "model", "tokens", "", "a.b", "betas", "*", "\xff", "validation", "stepz"};
    return keys[below(std::size(keys))];
  }

  /// A good document of any settings of the table: each is tried, and stays if the whole is still good.
  template <class Read>
  json grown(json document, const Read& read, Caller caller) {
    std::vector<std::pair<std::string, const SettingInfo*>> all;
    for (const SettingInfo& setting : table_) {
      const bool is_section = setting.values.kind == Values::Kind::object && setting.values.alternatives.empty();
      if (setting.is_for(caller) && !is_section) all.emplace_back("/" + setting.key, &setting);
      for (const SettingInfo& field : setting.values.fields)
        if (setting.is_for(caller) && field.is_for(caller) && is_section)
          all.emplace_back("/" + setting.key + "/" + field.key, &field);
    }
    std::shuffle(all.begin(), all.end(), random_);
    // Types first, which say what others there are.
    std::stable_partition(all.begin(), all.end(),
                          [](const auto& each) { return each.second->values.kind == Values::Kind::word; });
    for (const auto& [path, setting] : all) {
      json more = document;
      if (below(2) == 0) more[json::json_pointer(path)] = allowed(setting->values);
      try {
        read(more);
        document = std::move(more);
      } catch (const ConfigError&) {  // not beside the others
      }
    }
    return document;
  }

  /// Deletes, replaces, inserts or moves something at a random place.
  void mutate(json& place) {
    if (!place.is_structured() || place.empty() || below(12) == 0) {
      place = value();
      return;
    }
    auto child = place.begin();
    std::advance(child, below(place.size()));
    switch (below(6)) {
      case 0:
        place.erase(child);
        return;
      case 1:
        *child = value();
        return;
      case 2:
        if (place.is_object())
          place[key()] = value();
        else
          place.push_back(value());
        return;
      default:
        mutate(*child);
    }
  }

  std::string text(const json& document) {
    std::string bytes = document.dump(below(2) == 0 ? -1 : 2);
    for (size_t i = below(4); i > 0; --i) {
      const size_t at = below(bytes.size());
      switch (below(4)) {
        case 0:
          bytes[at] = static_cast<char>(below(256));
          break;
        case 1:
          bytes[at] ^= static_cast<char>(1 << below(8));
          break;
        case 2:
          bytes.erase(at, 1 + below(20));
          break;
        default:
          bytes.insert(at, 1 + below(3), "0123456789eE.-+{}[]\",:\\u\0"[below(26)]);
      }
      if (bytes.empty()) bytes = "{";
    }
    return bytes;
  }

 private:
  std::mt19937 random_;
  std::vector<SettingInfo> table_ = described_settings();
};

/// Good documents in which every setting occurs.
const std::vector<json>& good_documents() {
  static const std::vector<json> all = [] {
    Fuzz fuzz(0);
    const json models[] = {{{"preset", "tiny"}}, {{"path", SHERD_GOLDEN "/tiny"}}};
    const json sources[] = {
        {{"synthetic", true}}, {{"tokens", SHERD_GOLDEN "/tiny/tokens.bin"}}, {{"text", {"*.txt"}}}};
    std::vector<json> documents;
    for (int i = 0; i < 300; ++i)
      documents.push_back(
          fuzz.grown({{"model", models[i % 2]}, {"data", sources[i % 3]}}, read_train_config, Caller::command));
    return documents;
  }();
  return all;
}

const std::vector<json>& good_programs() {
  static const std::vector<json> all = [] {
    Fuzz fuzz(0);
    std::vector<json> documents;
    for (int i = 0; i < 100; ++i) documents.push_back(fuzz.grown(json::object(), read_program_config, Caller::program));
    return documents;
  }();
  return all;
}

/// "optimizer.lr" of every setting in a document.
void add_paths(const json& document, const std::string& before, std::set<std::string>& paths) {
  for (const auto& [key, value] : document.items()) {
    paths.insert(before + key);
    if (value.is_object()) add_paths(value, before + key + ".", paths);
  }
}

void expect_all_settings(const std::vector<json>& documents, Caller caller) {
  const json schema = json::parse(settings_schema());
  std::set<std::string> paths;
  for (const json& document : documents) {
    add_paths(document, "", paths);
    EXPECT_EQ(schema_mistake(schema, document, ""), "");
  }
  for (const SettingInfo& setting : described_settings())
    EXPECT_EQ(paths.contains(setting.key), setting.is_for(caller)) << setting.key;
  for (const std::string& path : setting_paths(caller)) EXPECT_TRUE(paths.contains(path)) << path;
}

/// Reads a document, which may fail with ConfigError only; true when it was accepted.
template <class Read, class Again>
bool accepted(const Read& read, const Again& again, Caller caller) {
  try {
    const json once = to_json(read(), caller);
    EXPECT_EQ(to_json(again(json::parse(once.dump())), caller), once);
    return true;
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_TRUE(message.starts_with("[config] got ")) << message;
    EXPECT_NE(message.find("; try "), std::string::npos) << message;
    return false;
  }
}

template <class Read>
bool accepted(const Read& read) {
  return accepted(read, read_train_config, Caller::command);
}

TEST(TrainConfigFuzz, EverySettingOfTheTableIsInIt) {
  expect_all_settings(good_documents(), Caller::command);
  expect_all_settings(good_programs(), Caller::program);
}

TEST(TrainConfigFuzz, MutatedPrograms) {
  Fuzz fuzz(4);
  int good = 0, bad = 0;
  for (int round = 0; round < 8000; ++round) {
    json document = fuzz.any_of(good_programs());
    for (size_t i = fuzz.below(3); i > 0; --i) fuzz.mutate(document);
    const auto read = [&] { return read_program_config(document); };
    ++(accepted(read, read_program_config, Caller::program) ? good : bad);
    if (HasFailure()) FAIL() << document;
  }
  EXPECT_GT(good, 1000);
  EXPECT_GT(bad, 1000);
}

TEST(TrainConfigFuzz, MutatedValues) {
  Fuzz fuzz(1);
  int good = 0, bad = 0;
  for (int round = 0; round < 8000; ++round) {
    json document = fuzz.any_of(good_documents());
    for (size_t i = fuzz.below(3); i > 0; --i) fuzz.mutate(document);
    ++(accepted([&] { return read_train_config(document); }) ? good : bad);
    if (HasFailure()) break;
  }
  EXPECT_GT(good, 1000);
  EXPECT_GT(bad, 1000);
}

TEST(TrainConfigFuzz, MutatedText) {
  Fuzz fuzz(2);
  int good = 0, bad = 0;
  for (int round = 0; round < 8000; ++round) {
    const std::string text = fuzz.text(fuzz.any_of(good_documents()));
    ++(accepted([&] { return read_train_config(parse_json(text, "fuzz.json")); }) ? good : bad);
    if (HasFailure()) FAIL() << text;
  }
  EXPECT_GT(good, 500);
  EXPECT_GT(bad, 1000);
}

TEST(TrainConfigFuzz, MutatedOverrides) {
  Fuzz fuzz(3);
  for (int round = 0; round < 8000; ++round) {
    std::string assignment = "optimizer.betas=[0.9, 0.95]";
    for (size_t i = fuzz.below(5); i > 0; --i)
      assignment[fuzz.below(assignment.size())] = ".=a[{\"0,\xff"[fuzz.below(9)];
    json document = fuzz.any_of(good_documents());
    accepted([&] {
      apply_override(document, assignment);
      return read_train_config(document);
    });
    if (HasFailure()) FAIL() << assignment;
  }
}

}  // namespace
}  // namespace sherd
