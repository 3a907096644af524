// First weights from a seed.
//
// A value depends on the seed, the parameter's name and the element's index, and on nothing else: not on the number
// of ranks, nor on the order or the pieces in which rows are asked for. Costs about 10 ns an element.
#pragma once

#include <cstdint>

#include "sherd/base/parameter_source.h"

namespace sherd {

/// normal(0, std) for matrices, ones for norms (names that end in "norm.weight"), zeros for biases ("bias").
ParameterSource seeded_normal(uint64_t seed, double std = 0.02);

}  // namespace sherd
