#include "sherd/config/values.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "sherd/base/names.h"

namespace sherd {
namespace {

/// Without what may stand in its place.
std::vector<std::string> described(const Values& values) {
  using Kind = Values::Kind;
  switch (values.kind) {
    case Kind::integer:
      return {range_text(values.integers)};
    case Kind::number:
      return {range_text(values.numbers)};
    case Kind::boolean:
      return {"true", "false"};
    case Kind::text:
      return {values.form};
    case Kind::texts:
      return {fmt::format("an array of {}", values.form)};
    case Kind::pair:
      return {fmt::format("an array of two: each {}", range_text(values.numbers))};
    case Kind::word:
      return words_as_json(values.words);
    case Kind::object:
      return {"an object"};
    case Kind::objects:
      return {"an array of objects"};
  }
  return {};
}

}  // namespace

std::vector<std::string> words_as_json(std::vector<std::string> words) {
  for (std::string& word : words)
    if (word != "true" && word != "false") word = fmt::format("\"{}\"", word);
  return words;
}

Values Values::or_auto() && {
  instead = "auto";
  return std::move(*this);
}

Values Values::or_null() && {
  null = Null::value;
  return std::move(*this);
}

Values Values::or_unset() && {
  null = Null::unsets;
  return std::move(*this);
}

Values Values::suggesting(std::vector<double> values) && {
  suggestion = std::move(values);
  return std::move(*this);
}

std::string Values::description() const {
  std::vector<std::string> all;
  const auto add = [&](const std::vector<std::string>& more) { all.insert(all.end(), more.begin(), more.end()); };
  if (!instead.empty()) add(words_as_json({instead}));
  add(described(*this));
  for (const Values& other : alternatives) add(described(other));
  if (null == Null::value) add({"null"});
  return sherd::alternatives(all);
}

bool SettingInfo::is_for(Caller caller) const {
  return std::find(callers.begin(), callers.end(), caller) != callers.end();
}

}  // namespace sherd
