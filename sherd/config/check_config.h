// What no single key of a configuration can tell: keys that contradict each other, and files that are not there.
#pragma once

#include "sherd/config/train_config.h"

namespace sherd {

/// What contradicts something else. Throws ConfigError.
void check_run(const TrainConfig& config);

/// Where the model and the data come from. Throws ConfigError. Looks at the file system, but opens nothing.
void check_sources(const TrainConfig& config);

}  // namespace sherd
