// SGD with momentum: torch.optim.SGD's mathematics (dampening 0) in one pass over memory, for every kind of weights and
// gradients (kernels/weights.h). The momentum is fp32.
//
//   g = gradient * gradient_scale + weight_decay * p
//   plain:     p -= lr * g
//   momentum:  b = momentum * b + g      p -= lr * b
//   nesterov:  b = momentum * b + g      p -= lr * (g + momentum * b)
//
// Single-threaded, any n >= 0 and any alignment of the types; the spans do not overlap. The same bits on every
// instruction set (no fused multiply-add) and wherever the range is split. Cost: with fp32 weights and gradients reads
// 12 and writes 8 bytes a parameter (plain: 8 and 4), bound by memory; nothing is allocated.
#pragma once

#include <cstdint>

#include "sherd/kernels/weights.h"

namespace sherd::kernels {

struct SgdScalars {
  double lr, momentum, weight_decay;
  double gradient_scale;  // 1, or what clipping asks for
};

/// Without momentum: scalars.momentum is not used.
void sgd(const SgdScalars& scalars, int64_t n, const Gradient& gradient, const Weights& weights);
/// `momentum`: zeros before the first step.
void sgd_momentum(const SgdScalars& scalars, int64_t n, const Gradient& gradient, const Weights& weights,
                  float* momentum);
void sgd_nesterov(const SgdScalars& scalars, int64_t n, const Gradient& gradient, const Weights& weights,
                  float* momentum);

}  // namespace sherd::kernels
