// JSON text to a JSON value, strictly, and changes from the command line.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace sherd {

/// Parses a document. Bad syntax, numbers out of range, a key given twice and nesting beyond 64 levels raise
/// ConfigError with `name`, line and column. (The standard parsers keep the last of two equal keys without a word.)
nlohmann::json parse_json(std::string_view text, const std::string& name);

/// Reads and parses a file of at most 16 MiB. Throws ConfigError.
nlohmann::json read_json_file(const std::string& path);

/// Applies "a.b=value": the value is JSON, or else a string. Objects on the way are created; the way must not lead
/// through anything that is not an object. Throws ConfigError.
void apply_override(nlohmann::json& json, const std::string& assignment);

}  // namespace sherd
