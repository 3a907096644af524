// AdamW and Adam: torch.optim's mathematics in one pass over memory, for every kind of weights, moments and gradients.
//
//   g = gradient * gradient_scale + l2 * p        (Adam: the decay is added to the gradient)
//   p *= 1 - lr * weight_decay                    (AdamW: of the parameter)
//   m = lerp(m, g, 1 - beta1)                     v = beta2 * v + (1 - beta2) * g * g
//   p -= (lr / bias_correction1) * m / (sqrt(v) / bias_correction2_sqrt + eps)
//
// All in fp32, whatever is stored: weights by kernels/weights.h, 8-bit moments by kernels/dynamic_map.h. There the
// update uses m and v before they are rounded to codes, and a quotient within 2^-13 of an entry's distance of the
// midpoint between two entries may get the farther one (kernels' own encode() does not).
//
// Single-threaded; callers split the range over threads (kernels/parallel.h), with 8-bit moments at multiples of
// kMapBlock. Any n >= 0, any alignment of the types; spans do not overlap. The result is the same bits on every
// instruction set (no fused multiply-add, correctly rounded square root and division) and wherever the range is split.
// Against torch it differs by roundings only: eps and lr are multiplied by bias_correction2_sqrt beforehand, which
// saves a division.
// Moments that have decayed below the smallest normal fp32 become zero: a parameter without gradients would otherwise
// keep denormals for ever (0.95 x rounds back to x), 1.6 times as slow in cache on the AMD core where it was tried.
// Beside eps it is nothing, and unlike a processor's flush-to-zero mode it gives the same bits on every machine.
// Cost: fp32 throughout reads 16 and writes 12 bytes a parameter, bound by memory; a split weight, 8-bit moments and a
// bf16 gradient read 8 and write 6, bound by arithmetic on one thread. Nothing is allocated.
#pragma once

#include <cstdint>
#include <variant>

#include "sherd/kernels/weights.h"

namespace sherd::kernels {

/// The scalars of one step. Derived factors (1 - beta2, ...) are taken in fp64 and rounded to fp32 once.
struct AdamWScalars {
  double lr, beta1, beta2, eps;
  double weight_decay;           // AdamW's
  double l2;                     // Adam's
  double bias_correction1;       // 1 - beta1^step
  double bias_correction2_sqrt;  // sqrt(1 - beta2^step)
  double gradient_scale;         // 1, or what clipping and loss scaling ask for
};

struct Fp32Moments {
  float *m, *v;
};

/// Codes of the signed (m) and the unsigned map (v), and a scale for each kMapBlock of them.
struct MapMoments {
  uint8_t *m, *v;
  float *m_absmax, *v_absmax;
};

using Moments = std::variant<Fp32Moments, MapMoments>;

/// The same from element i on; with MapMoments a multiple of kMapBlock.
Moments from(const Moments& moments, int64_t i);

void adamw(const AdamWScalars& scalars, int64_t n, const Gradient& gradient, const Weights& weights,
           const Moments& moments);

}  // namespace sherd::kernels
