// A typed walk through one JSON object. Every complaint is a ConfigError that names the key's path.
//
// A getter takes the variable to fill, which already holds the default: it is left alone when the key is absent, and
// shown as the fix when the value is wrong. Getters return whether the key was there. finish() then raises an error
// for the first key that no getter asked for. A reader borrows the JSON value, which must outlive it.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sherd {

/// Counts above this are mistakes, and below it their products do not overflow.
constexpr int64_t kMaxCount = 1'000'000'000;

struct IntegerRange {
  int64_t min = 1;
  int64_t max = kMaxCount;
};

enum class Bound { closed, open };

struct NumberRange {
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
  Bound low = Bound::closed;
  Bound high = Bound::closed;
};

class JsonReader {
 public:
  /// `path` is where `value` stands in the whole document, "" for its root. Throws unless it is an object.
  JsonReader(const nlohmann::json& value, std::string path);

  bool integer(const std::string& key, int64_t& target, IntegerRange range);
  bool integer(const std::string& key, std::optional<int64_t>& target, IntegerRange range);

  /// As integer(), and "auto" gives 0.
  bool integer_or_auto(const std::string& key, int64_t& target, IntegerRange range);
  bool number(const std::string& key, double& target, NumberRange range);
  bool boolean(const std::string& key, bool& target);

  /// Text without zero bytes, not empty.
  bool string(const std::string& key, std::string& target);
  bool strings(const std::string& key, std::vector<std::string>& target);

  /// A string that is one of `choices`.
  bool choice(const std::string& key, std::string& target, const std::vector<std::string>& choices);

  /// An object below this one.
  std::optional<JsonReader> object(const std::string& key);

  bool contains(const std::string& key) const;
  /// How many keys there are.
  size_t size() const;

  /// The value itself, or null when the key is absent. Counts as reading it.
  const nlohmann::json* find(const std::string& key);

  /// Is the key there with null? Counts as reading it.
  bool is_null(const std::string& key);

  /// Throws for the first key that nothing has read. The fix is the nearest key, or one of `all_paths` (of the whole
  /// document, "optimizer.lr") that ends with the key: then it only stands in the wrong object.
  void finish(const std::vector<std::string>& all_paths = {}) const;

  /// "optimizer.lr"
  std::string path(std::string_view key) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
  std::set<std::string> known_;  // keys that were asked for
};

/// A single value, as the getters read it; `path` and `fix` are for the message.
int64_t to_integer(const nlohmann::json& value, const std::string& path, IntegerRange range, int64_t fix);
double to_number(const nlohmann::json& value, const std::string& path, NumberRange range, double fix);
std::string to_string(const nlohmann::json& value, const std::string& path, const std::string& fix);

/// "an integer from 1 to 9", "a number above 0 and below 1"
std::string range_text(IntegerRange range);
std::string range_text(NumberRange range);

/// What a value is, for a message: `"fast" (a string)`, `an array of 3`. Never throws, never long.
std::string describe(const nlohmann::json& value);

/// The candidate with the fewest edits from `word`; empty when even that one is too different to be meant.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace sherd
