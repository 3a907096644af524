// Optimizer groups: hyperparameters chosen by parameter name.
//
// A list of no-decay patterns becomes one group with weight_decay 0. Patterns are globs (base/glob.h) over the whole
// fully qualified name. The first group with a matching pattern wins; names that none matches have the default. Lookup
// walks all patterns: do it once a parameter, not once a step.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sherd/base/glob.h"  // IWYU pragma: export

namespace sherd {

struct Hyperparameters {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;

  /// Throws ConfigError.
  void validate() const;
};

struct OptimGroup {
  std::vector<std::string> patterns;
  Hyperparameters values;
};

class OptimGroups {
 public:
  /// Throws ConfigError for impossible values and for an empty pattern.
  OptimGroups(Hyperparameters defaults, std::vector<OptimGroup> groups);

  /// The values of a parameter; the reference lives as long as this object.
  const Hyperparameters& find(std::string_view fqn) const;

  /// The patterns that match none of the names: usually a misspelling, which would otherwise go unnoticed.
  std::vector<std::string> unused_patterns(std::span<const std::string> fqns) const;

 private:
  Hyperparameters defaults_;
  std::vector<OptimGroup> groups_;
};

}  // namespace sherd
