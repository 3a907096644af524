// Where a step went astray: the first unit or parameter that was not finite, over all ranks.
#pragma once

#include <string>

#include "sherd/shard/sharded_model.h"

namespace sherd {

/// "the output of unit 'x' in forward (rank 1)", or, where all outputs were finite, "the gradient of 'y' in unit 'x'
/// (rank 0)": the first in the order of backward. Collective, before the model's publish().
std::string origin_of_non_finite(ShardedModel& model);

}  // namespace sherd
