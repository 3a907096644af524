// Options of an engine that differ from the defaults in their strategy alone.
#pragma once

#include <string>

#include "sherd/engine/engine_options.h"

namespace sherd::testing {

inline EngineOptions with_strategy(std::string strategy) {
  EngineOptions options;
  options.strategy = std::move(strategy);
  return options;
}

}  // namespace sherd::testing
