// What no single key of a configuration can tell: keys that contradict each other, and files that are not there.
#pragma once

#include "sherd/config/train_config.h"

namespace sherd {

/// Throws ConfigError. Looks at the file system, but opens nothing.
void check_config(const TrainConfig& config);

}  // namespace sherd
