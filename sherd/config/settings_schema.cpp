#include <limits>
#include <nlohmann/json.hpp>

#include "sherd/config/settings.h"
#include "sherd/config/settings_text.h"

namespace sherd {
namespace {

using nlohmann::json;

json schema_of(const std::vector<SettingInfo>& fields);

json schema_of(IntegerRange range) {
  json schema = {{"type", "integer"}, {"minimum", range.min}};
  if (range.max != std::numeric_limits<int64_t>::max()) schema["maximum"] = range.max;
  return schema;
}

json schema_of(NumberRange range) {
  const NumberRange unbounded;
  json schema = {{"type", "number"}};
  if (range.min != unbounded.min) schema[range.low == Bound::open ? "exclusiveMinimum" : "minimum"] = range.min;
  if (range.max != unbounded.max) schema[range.high == Bound::open ? "exclusiveMaximum" : "maximum"] = range.max;
  return schema;
}

json schema_of(const std::string& word) {
  if (word == "true" || word == "false") return {{"const", word == "true"}};
  return {{"const", word}};
}

/// Without what may stand in its place.
json plain_schema(const Values& values) {
  using Kind = Values::Kind;
  const json text = {{"type", "string"}, {"minLength", 1}};
  switch (values.kind) {
    case Kind::integer:
      return schema_of(values.integers);
    case Kind::number:
      return schema_of(values.numbers);
    case Kind::boolean:
      return {{"type", "boolean"}};
    case Kind::text:
      return text;
    case Kind::texts:
      return {{"type", "array"}, {"items", text}, {"minItems", values.at_least}};
    case Kind::pair:
      return {{"type", "array"}, {"items", schema_of(values.numbers)}, {"minItems", 2}, {"maxItems", 2}};
    case Kind::word: {
      json all = json::array();
      for (const std::string& word : values.words) all.push_back(schema_of(word)["const"]);
      return {{"enum", all}};
    }
    case Kind::object:
      return schema_of(values.fields);
    case Kind::objects:
      return {{"type", "array"}, {"items", schema_of(values.fields)}};
  }
  return {};
}

json schema_of(const Values& values) {
  json any = json::array({plain_schema(values)});
  if (!values.instead.empty()) any.push_back(schema_of(values.instead));
  for (const Values& other : values.alternatives) any.push_back(plain_schema(other));
  if (values.null != Values::Null::refused) any.push_back({{"type", "null"}});
  return any.size() == 1 ? any[0] : json{{"anyOf", any}};
}

json schema_of(const std::vector<SettingInfo>& fields) {
  json properties = json::object();
  for (const SettingInfo& field : fields) {
    json& schema = properties[field.key] = schema_of(field.values);
    schema["description"] = field.sentence;
    if (json::accept(field.preset)) schema["default"] = json::parse(field.preset);
  }
  return {{"type", "object"}, {"properties", properties}, {"additionalProperties", false}};
}

}  // namespace

std::string settings_schema() {
  json schema = schema_of(described_settings());
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  schema["title"] = "A configuration of sherd";
  return schema.dump(2) + "\n";
}

}  // namespace sherd
