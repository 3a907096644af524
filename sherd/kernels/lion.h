// Lion (Chen et al., "Symbolic discovery of optimization algorithms", 2023) in one pass over memory, for every kind of
// weights and gradients (kernels/weights.h) and a momentum of fp32 or 8 bits (kernels/dynamic_map.h).
//
//   g = gradient * gradient_scale
//   p = p * (1 - lr * weight_decay) - lr * sign(beta1 * m + (1 - beta1) * g)        sign(0) = 0
//   m = beta2 * m + (1 - beta2) * g
//
// All in fp32, whatever is stored. 8-bit momenta: the move uses what the old codes say, and m is rounded to the nearest
// entry of its map. Single-threaded; callers split the range, with 8-bit momenta at multiples of kMapBlock. Any n >= 0,
// any alignment of the types; spans do not overlap. The same bits on every instruction set (no fused multiply-add) and
// wherever the range is split. Cost: fp32 throughout reads 12 and writes 8 bytes a parameter; nothing is allocated.
#pragma once

#include <cstdint>
#include <variant>

#include "sherd/kernels/weights.h"

namespace sherd::kernels {

/// Derived factors (1 - beta1, ...) are taken in fp64 and rounded to fp32 once.
struct LionScalars {
  double lr, beta1, beta2, weight_decay;
  double gradient_scale;  // 1, or what clipping and loss scaling ask for
};

struct Fp32Momentum {
  float* m;
};

/// Codes of the signed map, and a scale for each kMapBlock of them.
struct MapMomentum {
  uint8_t* m;
  float* absmax;
};

using Momentum = std::variant<Fp32Momentum, MapMomentum>;

/// The same from element i on; with MapMomentum a multiple of kMapBlock.
Momentum from(const Momentum& momentum, int64_t i);

void lion(const LionScalars& scalars, int64_t n, const Gradient& gradient, const Weights& weights,
          const Momentum& momentum);

}  // namespace sherd::kernels
