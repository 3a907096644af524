// Which units of a model are recomputed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace sherd {

/// Of the outermost units (the root is none), the first and every `every`-th after it; 0: none, 1: all.
struct RecomputePolicy {
  int every = 0;

  bool applies_to(size_t outermost_unit) const { return every > 0 && outermost_unit % static_cast<size_t>(every) == 0; }

  static constexpr std::string_view kForm = "none, full or every:K with K of at least 1";
  /// Of kForm. Throws ConfigError.
  static RecomputePolicy parse(std::string_view text);
  std::string text() const;
};

}  // namespace sherd
