#include "sherd/config/setting_value.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace sherd {
namespace {

using nlohmann::json;

json json_of_word(std::string_view word) {
  if (word == "true" || word == "false") return word == "true";
  return word;
}

/// Whether null stands there and takes the value back.
bool is_unset(JsonReader& reader, const std::string& key, const Values& values) {
  return values.null == Values::Null::unsets && reader.is_null(key);
}

const json& two_numbers(const JsonReader& reader, const std::string& key, const json& value, double first,
                        double second) {
  if (!value.is_array() || value.size() != 2)
    config_error("config", "got {} for '{}', expected an array of two numbers; try [{}, {}]", describe(value),
                 reader.path(key), first, second);
  return value;
}

}  // namespace

void read_value(JsonReader& reader, const std::string& key, const Values& values, int64_t& value) {
  if (is_unset(reader, key, values)) return;
  if (values.instead.empty())
    reader.integer(key, value, values.integers);
  else
    reader.integer_or_auto(key, value, values.integers);
}

void read_value(JsonReader& reader, const std::string& key, const Values& values, double& value) {
  reader.number(key, value, values.numbers);
}

void read_value(JsonReader& reader, const std::string& key, const Values& values, std::optional<double>& value) {
  if (values.null == Values::Null::value && reader.is_null(key)) {
    value.reset();
  } else if (const json* given = reader.find(key)) {
    const double suggestion = values.suggestion.empty() ? value.value_or(1) : values.suggestion.front();
    value = to_number(*given, reader.path(key), values.numbers, suggestion);
  }
}

void read_value(JsonReader& reader, const std::string& key, const Values& values, bool& value) {
  if (!is_unset(reader, key, values)) reader.boolean(key, value);
}

void read_value(JsonReader& reader, const std::string& key, const Values& values, std::string& value) {
  if (is_unset(reader, key, values)) return;
  if (values.kind == Values::Kind::word)
    reader.choice(key, value, values.words);
  else
    reader.string(key, value);
}

void read_value(JsonReader& reader, const std::string& key, const Values& values, std::vector<std::string>& value) {
  if (is_unset(reader, key, values) || !reader.strings(key, value) || value.size() >= values.at_least) return;
  config_error("config", "got an array of {} for '{}', expected {}; try [\"{}\"]", value.size(), reader.path(key),
               values.form, values.example);
}

void read_pair(JsonReader& reader, const std::string& key, const Values& values, double& first, double& second) {
  const json* given = reader.find(key);
  if (given == nullptr) return;
  const json& two = two_numbers(reader, key, *given, first, second);
  const double numbers[] = {to_number(two[0], reader.path(key) + "[0]", values.numbers, first),
                            to_number(two[1], reader.path(key) + "[1]", values.numbers, second)};
  first = numbers[0];
  second = numbers[1];
}

void read_pair(JsonReader& reader, const std::string& key, const Values& values, std::optional<double>& first,
               std::optional<double>& second) {
  if (reader.find(key) == nullptr) return;
  double numbers[] = {values.suggestion.at(0), values.suggestion.at(1)};
  read_pair(reader, key, values, numbers[0], numbers[1]);
  first = numbers[0];
  second = numbers[1];
}

size_t read_word(JsonReader& reader, const std::string& key, const std::vector<std::string>& all,
                 std::string_view value) {
  std::string word(value);
  const bool has_booleans = std::find(all.begin(), all.end(), "true") != all.end();
  if (!has_booleans) {
    reader.choice(key, word, all);
  } else if (const json* given = reader.find(key)) {
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const std::string& each) { return *given == json_of_word(each); });
    if (found == all.end())
      config_error("config", "got {} for '{}', expected {}; try {}", describe(*given), reader.path(key),
                   alternatives(words_as_json(all)), json_of_word(all.front()).dump());
    word = *found;
  }
  return static_cast<size_t>(std::find(all.begin(), all.end(), word) - all.begin());
}

void write_value(json& out, const std::string& key, const Values& values, int64_t value) {
  out[key] = value == 0 && !values.instead.empty() ? json(values.instead) : json(value);
}

void write_value(json& out, const std::string& key, const Values&, double value) { out[key] = value; }
void write_value(json& out, const std::string& key, const Values&, bool value) { out[key] = value; }

void write_value(json& out, const std::string& key, const Values&, const std::string& value) {
  if (!value.empty()) out[key] = value;
}

void write_value(json& out, const std::string& key, const Values& values, const std::vector<std::string>& value) {
  if (!value.empty() || values.null != Values::Null::unsets) out[key] = value;
}

void write_null(json& out, const std::string& key, const Values& values) {
  if (values.null == Values::Null::value) out[key] = nullptr;
}

void write_pair(json& out, const std::string& key, std::optional<double> first, std::optional<double> second) {
  if (first && second) out[key] = {*first, *second};
}

void write_word(json& out, const std::string& key, std::string_view word) { out[key] = json_of_word(word); }

void write_below(json& out, const std::string& key, const std::function<void(json&)>& write) {
  json below = json::object();
  write(below);
  out[key] = std::move(below);
}

void refuse_setting(const std::string& path, Caller caller) {
  if (caller == Caller::program)
    config_error("config",
                 "got '{}' in a program's configuration, expected none: the program brings its own; try without", path);
  config_error("config",
               "got '{}' in the command's configuration, expected it in that of sherd.initialize; try without", path);
}

std::string text_written(const std::string& key, const std::function<void(json&)>& write) {
  json out = json::object();
  write(out);
  return out.contains(key) ? out[key].dump() : "";
}

}  // namespace sherd
