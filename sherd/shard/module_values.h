// The values that a module's parameters have now, as first values for the engine.
#pragma once

#include <torch/nn/module.h>

#include "sherd/base/parameter_source.h"

namespace sherd {

/// Copies of all parameters of `module` (as large as the model, on the CPU, until the source is dropped). Every rank
/// hands out the rows that it owns: start all ranks from one seed. For models too large for one copy, give the engine a
/// source that reads or computes rows instead.
ParameterSource module_values(torch::nn::Module& module);

}  // namespace sherd
