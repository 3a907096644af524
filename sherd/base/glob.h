// Globs over names: '*' stands for any run of characters, dots included, '?' for one.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace sherd {

/// Whether the glob stands for the whole text. Linear in the text for each '*'.
bool glob_matches(std::string_view glob, std::string_view text);
bool any_glob_matches(std::span<const std::string> globs, std::string_view text);

}  // namespace sherd
