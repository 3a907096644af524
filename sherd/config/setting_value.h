// What settings of each type do with JSON: read a value that Values allows, and write it.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "sherd/base/names.h"
#include "sherd/config/json_reader.h"
#include "sherd/config/values.h"

namespace sherd {

/// Who reads, and all paths that there are, for hints.
struct Reading {
  Caller caller;
  const std::vector<std::string>& paths;
};

/// Each leaves the value alone where the key is absent, and throws ConfigError.
void read_value(JsonReader& reader, const std::string& key, const Values& values, int64_t& value);
void read_value(JsonReader& reader, const std::string& key, const Values& values, double& value);
void read_value(JsonReader& reader, const std::string& key, const Values& values, bool& value);
void read_value(JsonReader& reader, const std::string& key, const Values& values, std::string& value);
void read_value(JsonReader& reader, const std::string& key, const Values& values, std::vector<std::string>& value);
void read_value(JsonReader& reader, const std::string& key, const Values& values, std::optional<double>& value);
void read_pair(JsonReader& reader, const std::string& key, const Values& values, double& first, double& second);
void read_pair(JsonReader& reader, const std::string& key, const Values& values, std::optional<double>& first,
               std::optional<double>& second);
/// Which of the words it is now.
size_t read_word(JsonReader& reader, const std::string& key, const std::vector<std::string>& all,
                 std::string_view value);

/// Each leaves out what is unset, unless null says that.
void write_value(nlohmann::json& out, const std::string& key, const Values& values, int64_t value);
void write_value(nlohmann::json& out, const std::string& key, const Values& values, double value);
void write_value(nlohmann::json& out, const std::string& key, const Values& values, bool value);
void write_value(nlohmann::json& out, const std::string& key, const Values& values, const std::string& value);
void write_value(nlohmann::json& out, const std::string& key, const Values& values,
                 const std::vector<std::string>& value);
void write_null(nlohmann::json& out, const std::string& key, const Values& values);
void write_pair(nlohmann::json& out, const std::string& key, std::optional<double> first, std::optional<double> second);
void write_word(nlohmann::json& out, const std::string& key, std::string_view word);
void write_below(nlohmann::json& out, const std::string& key, const std::function<void(nlohmann::json&)>& write);

/// "optimizer.lr" is of the other caller.
[[noreturn]] void refuse_setting(const std::string& path, Caller caller);

/// What `write` puts under the key, as text; empty for nothing.
std::string text_written(const std::string& key, const std::function<void(nlohmann::json&)>& write);

template <class Enum>
requires std::is_enum_v<Enum>
void read_value(JsonReader& reader, const std::string& key, const Values& values, Enum& value) {
  bool second = value != Enum{};
  read_value(reader, key, values, second);
  value = static_cast<Enum>(second);
}

template <class Enum>
requires std::is_enum_v<Enum>
void write_value(nlohmann::json& out, const std::string& key, const Values& values, Enum value) {
  write_value(out, key, values, value != Enum{});
}

/// A present value is read over a fresh one; null takes it away, where null is allowed.
template <class Value>
void read_value(JsonReader& reader, const std::string& key, const Values& values, std::optional<Value>& value) {
  if (reader.find(key) == nullptr) return;
  if (values.null != Values::Null::refused && reader.is_null(key)) return value.reset();
  Value read = value.value_or(Value{});
  read_value(reader, key, values, read);
  value = std::move(read);
}

template <class Value>
void write_value(nlohmann::json& out, const std::string& key, const Values& values, const std::optional<Value>& value) {
  if (value)
    write_value(out, key, values, *value);
  else
    write_null(out, key, values);
}

}  // namespace sherd
