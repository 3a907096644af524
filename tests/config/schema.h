// A reader of JSON Schema, as far as the schema of settings goes: any other keyword is a failure.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

namespace sherd {

inline bool is_of_type(const nlohmann::json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  if (type == "integer") return value.is_number() && std::floor(value.get<double>()) == value.get<double>();
  ADD_FAILURE() << "a schema with the type " << type;
  return false;
}

/// What of the document the schema does not allow; empty: nothing.
inline std::string schema_mistake(const nlohmann::json& schema, const nlohmann::json& value, const std::string& path) {
  const std::string mistake = path + ": " + value.dump() + " against ";
  for (const auto& [keyword, wanted] : schema.items()) {
    bool good = true;
    if (keyword == "type")
      good = is_of_type(value, wanted);
    else if (keyword == "const")
      good = value == wanted;
    else if (keyword == "enum")
      good = std::find(wanted.begin(), wanted.end(), value) != wanted.end();
    else if (keyword == "minimum")
      good = value >= wanted;
    else if (keyword == "maximum")
      good = value <= wanted;
    else if (keyword == "exclusiveMinimum")
      good = value > wanted;
    else if (keyword == "exclusiveMaximum")
      good = value < wanted;
    else if (keyword == "minLength")
      good = value.get<std::string>().size() >= wanted;
    else if (keyword == "minItems")
      good = value.size() >= wanted;
    else if (keyword == "maxItems")
      good = value.size() <= wanted;
    else if (keyword == "anyOf")
      good = std::any_of(wanted.begin(), wanted.end(),
                         [&](const auto& any) { return schema_mistake(any, value, path).empty(); });
    else if (keyword == "items") {
      for (size_t i = 0; value.is_array() && i < value.size(); ++i)
        if (const auto below = schema_mistake(wanted, value[i], path + "[]"); !below.empty()) return below;
    } else if (keyword == "properties") {
      for (const auto& [key, each] : value.items())
        if (wanted.contains(key)) {
          if (const auto below = schema_mistake(wanted[key], each, path + "." + key); !below.empty()) return below;
        } else if (schema["additionalProperties"] == false) {
          return path + ": no property " + key;
        }
    } else if (keyword != "description" && keyword != "default" && keyword != "title" && keyword != "$schema" &&
               keyword != "additionalProperties") {
      ADD_FAILURE() << "a schema with the keyword " << keyword;
    }
    if (!good) return mistake + keyword + " " + wanted.dump();
  }
  return "";
}

}  // namespace sherd
