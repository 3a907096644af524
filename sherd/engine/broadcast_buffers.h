// A model's registered buffers (running means, tables), as rank 0 has them.
#pragma once

#include <torch/nn/module.h>

#include "sherd/comm/transport.h"

namespace sherd {

/// Overwrites the buffers of `module` on every rank with rank 0's. Collective; all ranks have buffers of the same
/// names, shapes and types, else ConfigError. One collective a buffer, through the CPU's memory where it is small.
void broadcast_buffers(torch::nn::Module& module, Transport& transport);

}  // namespace sherd
