// Values of an enum and what they are called: one table each, beside the enum, for settings, messages and Python.
//
//   inline constexpr Name<LastBatch> kLastBatchNames[] = {{LastBatch::next_epoch, "next_epoch"}, ...};
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sherd/base/error.h"

namespace sherd {

template <class Value>
struct Name {
  Value value;
  std::string_view text;
};

/// What a value is called; each has a name.
template <class Value, size_t N>
std::string_view text_of(const Name<Value> (&names)[N], const Value& value) {
  for (const auto& name : names)
    if (name.value == value) return name.text;
  SHERD_CHECK(false);
}

template <class Value, size_t N>
std::optional<Value> find_named(const Name<Value> (&names)[N], std::string_view text) {
  for (const auto& name : names)
    if (name.text == text) return name.value;
  return std::nullopt;
}

/// All names, in the order of the table.
template <class Value, size_t N>
std::vector<std::string> texts_of(const Name<Value> (&names)[N]) {
  std::vector<std::string> texts;
  for (const auto& name : names) texts.emplace_back(name.text);
  return texts;
}

/// "a, b or c", for messages.
inline std::string alternatives(const std::vector<std::string>& texts, std::string_view last = "or") {
  if (texts.size() < 2) return fmt::format("{}", fmt::join(texts, ""));
  return fmt::format("{} {} {}", fmt::join(texts.begin(), texts.end() - 1, ", "), last, texts.back());
}

/// The value of this name. Throws ConfigError that begins with `where` and offers `fix`.
template <class Value, size_t N>
Value named(const Name<Value> (&names)[N], std::string_view text, std::string_view where, std::string_view fix) {
  if (const auto value = find_named(names, text)) return *value;
  config_error(where, "got '{}', expected {}; try {}", text, alternatives(texts_of(names)), fix);
}

}  // namespace sherd
