#include "sherd/shard/unit_policy.h"

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/base/glob.h"

namespace sherd {

UnitPolicy all_units() {
  return [](const UnitCandidate&) { return true; };
}

UnitPolicy units_of_at_least(int64_t parameters) {
  if (parameters < 0) config_error("units", "got at least {} parameters, expected 0 or more; try 0", parameters);
  return [parameters](const UnitCandidate& unit) { return unit.parameters >= parameters; };
}

UnitPolicy units_named(std::vector<std::string> patterns) {
  if (patterns.empty()) config_error("units", "got no name, expected at least one; try {{\"*layers.*\"}}");
  return [patterns = std::move(patterns)](const UnitCandidate& unit) {
    return std::any_of(patterns.begin(), patterns.end(),
                       [&](const std::string& pattern) { return glob_matches(pattern, unit.name); });
  };
}

}  // namespace sherd
