#include "sherd/optim/optim_groups.h"

#include <algorithm>
#include <cmath>

#include "sherd/base/error.h"

namespace sherd {
namespace {

void validate_beta(std::string_view where, double beta) {
  if (!(beta >= 0.0 && beta < 1.0)) config_error(where, "got {}, expected 0 <= beta < 1; try 0.9", beta);
}

}  // namespace

void Hyperparameters::validate() const {
  if (!(std::isfinite(lr) && lr >= 0.0)) config_error("optimizer.lr", "got {}, expected a number >= 0; try 1e-3", lr);
  validate_beta("optimizer.betas[0]", beta1);
  validate_beta("optimizer.betas[1]", beta2);
  // Without eps a parameter that never had a gradient becomes 0/0; far below 1e-30 it is zero in fp32.
  if (!(std::isfinite(eps) && eps >= 1e-30)) {
    config_error("optimizer.eps", "got {}, expected a number >= 1e-30; try 1e-8", eps);
  }
  if (!(std::isfinite(weight_decay) && weight_decay >= 0.0)) {
    config_error("optimizer.weight_decay", "got {}, expected a number >= 0; try 0.1", weight_decay);
  }
}

OptimGroups::OptimGroups(Hyperparameters defaults, std::vector<OptimGroup> groups)
    : defaults_(defaults), groups_(std::move(groups)) {
  defaults_.validate();
  for (const OptimGroup& group : groups_) {
    group.values.validate();
    for (const std::string& pattern : group.patterns) {
      if (pattern.empty()) {
        config_error("optimizer groups", "got an empty pattern, expected a glob over parameter names; try \"*bias\"");
      }
    }
  }
}

const Hyperparameters& OptimGroups::find(std::string_view fqn) const {
  const auto group = std::find_if(groups_.begin(), groups_.end(), [&](const OptimGroup& candidate) {
    return any_glob_matches(candidate.patterns, fqn);
  });
  return group == groups_.end() ? defaults_ : group->values;
}

std::vector<std::string> OptimGroups::unused_patterns(std::span<const std::string> fqns) const {
  std::vector<std::string> unused;
  for (const OptimGroup& group : groups_) {
    std::copy_if(group.patterns.begin(), group.patterns.end(), std::back_inserter(unused),
                 [&](const std::string& pattern) {
                   return std::none_of(fqns.begin(), fqns.end(),
                                       [&](const std::string& fqn) { return glob_matches(pattern, fqn); });
                 });
  }
  return unused;
}

}  // namespace sherd
