// Which parameters of a model communicate together, and how: decided before anything is allocated.
#pragma once

#include <string>
#include <vector>

#include "sherd/shard/shard_options.h"
#include "sherd/shard/store.h"
#include "sherd/shard/unit_state.h"

namespace sherd {

struct PlannedUnit {
  std::string name;
  AfterForward after_forward = AfterForward::reshard;
  Activations activations = Activations::keep;
};

struct ModelPlan {
  std::vector<PlannedUnit> units;  // as they were found, the root first
  StorePlan store;
  std::vector<size_t> unit_of_group;
  std::vector<std::vector<at::Tensor>> parameters;  // by group
  std::vector<size_t> contribution_order;  // of groups: the reverse of the module tree, units with children last
  std::vector<std::string> warnings;       // one unit that holds most of the model
};

/// Parameters of a unit form a group if they have the same types; frozen ones apart. `ranks`: that rows are spread
/// over. Throws ConfigError for what cannot be sharded.
ModelPlan plan_model(const std::vector<FoundUnit>& found, const ShardOptions& options, int ranks);

}  // namespace sherd
