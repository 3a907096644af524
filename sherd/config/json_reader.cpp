#include "sherd/config/json_reader.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using nlohmann::json;

/// Insertions, deletions and replacements that turn `a` into `b`.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replace = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replace, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

/// The text as JSON would write it inside its quotes, cut to a readable length.
std::string escape(const std::string& text) {
  constexpr size_t kLongest = 80;
  const std::string quoted = json(text.substr(0, kLongest)).dump(-1, ' ', false, json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2) + (text.size() > kLongest ? "..." : "");
}

bool is_utf8(const std::string& text) {
  try {
    static_cast<void>(json(text).dump());
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

}  // namespace

std::string range_text(IntegerRange range) {
  if (range.max == std::numeric_limits<int64_t>::max()) return fmt::format("an integer of at least {}", range.min);
  return fmt::format("an integer from {} to {}", range.min, range.max);
}

std::string range_text(NumberRange range) {
  const NumberRange unbounded;
  std::string text = "a number";
  if (range.min != unbounded.min)
    text += fmt::format(" {} {}", range.low == Bound::open ? "above" : "of at least", range.min);
  if (range.min != unbounded.min && range.max != unbounded.max) text += " and";
  if (range.max != unbounded.max)
    text += fmt::format(" {} {}", range.high == Bound::open ? "below" : "at most", range.max);
  return text;
}

std::string describe(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::object:
      return fmt::format("an object of {}", value.size());
    case json::value_t::array:
      return fmt::format("an array of {}", value.size());
    case json::value_t::string:
      return fmt::format("\"{}\" (a string)", escape(value.get_ref<const std::string&>()));
    case json::value_t::boolean:
      return value.get<bool>() ? "true" : "false";
    case json::value_t::number_integer:
      return fmt::format("{}", value.get<int64_t>());
    case json::value_t::number_unsigned:
      return fmt::format("{}", value.get<uint64_t>());
    case json::value_t::number_float:
      return fmt::format("{}", value.get<double>());
    default:
      return "binary data";
  }
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t fewest = std::max<size_t>(2, word.size() / 2);  // more edits than that: something else was meant
  if (word.size() > 100) return best;
  for (const std::string& candidate : candidates) {
    const size_t edits = edit_distance(word, candidate);
    if (edits < std::max(word.size(), candidate.size()) && (edits < fewest || (edits == fewest && best.empty()))) {
      fewest = edits;
      best = candidate;
    }
  }
  return best;
}

int64_t to_integer(const json& value, const std::string& path, IntegerRange range, int64_t fix) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: above it a double does not say which integer was meant
  std::optional<int64_t> integer;
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) integer = static_cast<int64_t>(number);
  } else if (value.is_number_integer()) {
    integer = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) <= kExact && number == std::floor(number)) integer = static_cast<int64_t>(number);
  }
  if (integer && *integer >= range.min && *integer <= range.max) return *integer;
  config_error("config", "got {} for '{}', expected {}; try {}", describe(value), path, range_text(range),
               std::clamp(fix, range.min, range.max));
}

double to_number(const json& value, const std::string& path, NumberRange range, double fix) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  const bool above = range.low == Bound::open ? number > range.min : number >= range.min;
  const bool below = range.high == Bound::open ? number < range.max : number <= range.max;
  if (above && below && std::isfinite(number)) return number;
  config_error("config", "got {} for '{}', expected {}; try {}", describe(value), path, range_text(range), fix);
}

std::string to_string(const json& value, const std::string& path, const std::string& fix) {
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    if (!text.empty() && text.find('\0') == std::string::npos && is_utf8(text)) return text;
  }
  config_error("config", "got {} for '{}', expected a string of UTF-8 text, not empty; try \"{}\"", describe(value),
               path, fix);
}

JsonReader::JsonReader(const json& value, std::string path) : value_(&value), path_(std::move(path)) {
  if (value.is_object()) return;
  if (path_.empty()) config_error("config", "got {}, expected a JSON object; try {{\"model\": ...}}", describe(value));
  config_error("config", "got {} for '{}', expected an object; try \"{}\": {{...}}", describe(value), path_, path_);
}

std::string JsonReader::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

size_t JsonReader::size() const { return value_->size(); }

bool JsonReader::contains(const std::string& key) const { return value_->contains(key); }

const json* JsonReader::find(const std::string& key) {
  known_.insert(key);
  const auto found = value_->find(key);
  return found == value_->end() ? nullptr : &*found;
}

bool JsonReader::is_null(const std::string& key) {
  const json* value = find(key);
  return value != nullptr && value->is_null();
}

bool JsonReader::integer(const std::string& key, int64_t& target, IntegerRange range) {
  const json* value = find(key);
  if (value != nullptr) target = to_integer(*value, path(key), range, target);
  return value != nullptr;
}

bool JsonReader::integer(const std::string& key, std::optional<int64_t>& target, IntegerRange range) {
  const json* value = find(key);
  if (value != nullptr) target = to_integer(*value, path(key), range, target.value_or(range.min));
  return value != nullptr;
}

bool JsonReader::integer_or_auto(const std::string& key, int64_t& target, IntegerRange range) {
  const json* value = find(key);
  if (value == nullptr) return false;
  if (value->is_string()) {
    if (value->get_ref<const std::string&>() == "auto") {
      target = 0;
      return true;
    }
    config_error("config", "got {} for '{}', expected \"auto\" or {}; try \"auto\"", describe(*value), path(key),
                 range_text(range));
  }
  target = to_integer(*value, path(key), range, target);
  return true;
}

bool JsonReader::number(const std::string& key, double& target, NumberRange range) {
  const json* value = find(key);
  if (value != nullptr) target = to_number(*value, path(key), range, target);
  return value != nullptr;
}

bool JsonReader::boolean(const std::string& key, bool& target) {
  const json* value = find(key);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    config_error("config", "got {} for '{}', expected true or false; try {}", describe(*value), path(key), target);
  }
  target = value->get<bool>();
  return true;
}

bool JsonReader::string(const std::string& key, std::string& target) {
  const json* value = find(key);
  if (value != nullptr) target = to_string(*value, path(key), target.empty() ? "..." : target);
  return value != nullptr;
}

bool JsonReader::strings(const std::string& key, std::vector<std::string>& target) {
  const json* value = find(key);
  if (value == nullptr) return false;
  if (!value->is_array()) {
    const std::string fix = value->is_string() ? escape(value->get_ref<const std::string&>()) : "...";
    config_error("config", "got {} for '{}', expected an array of strings; try [\"{}\"]", describe(*value), path(key),
                 fix);
  }
  std::vector<std::string> read;
  for (size_t i = 0; i < value->size(); ++i) {
    read.push_back(to_string((*value)[i], fmt::format("{}[{}]", path(key), i), "..."));
  }
  target = std::move(read);
  return true;
}

bool JsonReader::choice(const std::string& key, std::string& target, const std::vector<std::string>& choices) {
  const json* value = find(key);
  if (value == nullptr) return false;
  const std::string* text = value->get_ptr<const json::string_t*>();
  if (text != nullptr && std::find(choices.begin(), choices.end(), *text) != choices.end()) {
    target = *text;
    return true;
  }
  std::string fix = text == nullptr ? "" : nearest(*text, choices);
  if (fix.empty()) fix = target.empty() ? choices.front() : target;
  config_error("config", "got {} for '{}', expected one of {}; try \"{}\"", describe(*value), path(key),
               fmt::join(choices, ", "), fix);
}

std::optional<JsonReader> JsonReader::object(const std::string& key) {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return JsonReader(*value, path(key));
}

void JsonReader::finish(const std::vector<std::string>& all_paths) const {
  for (const auto& [key, value] : value_->items()) {
    if (known_.contains(key)) continue;
    const std::string below = "." + key;
    const auto elsewhere = std::find_if(all_paths.begin(), all_paths.end(),
                                        [&](const std::string& known) { return known.ends_with(below); });
    const std::vector<std::string> known(known_.begin(), known_.end());
    const std::string fix = elsewhere != all_paths.end() ? *elsewhere : nearest(key, known);
    config_error("config", "got unknown key '{}', expected one of {}; try {}", escape(path(key)),
                 fmt::join(known, ", "), fix.empty() ? "to leave it out" : fmt::format("'{}'", fix));
  }
}

}  // namespace sherd
