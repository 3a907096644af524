// What the table of settings says, for people and for editors.
#pragma once

#include <string>

namespace sherd {

/// What a setting may be, for one line of help: "zero1" or "zero2". The setting is of no section.
std::string setting_values(const std::string& key);

/// By section, for a terminal of 100 columns.
std::string settings_help();

/// The same as tables: docs/config.md.
std::string settings_markdown();

/// A JSON Schema (draft 2020-12): docs/config.schema.json. It knows every single setting; which of them go together is
/// for the reader to say.
std::string settings_schema();

}  // namespace sherd
