// SGD with momentum on fp32 spans: torch.optim.SGD's mathematics (dampening 0) in one pass over memory.
//
//   g = gradient * gradient_scale + weight_decay * p
//   plain:     p -= lr * g
//   momentum:  b = momentum * b + g      p -= lr * b
//   nesterov:  b = momentum * b + g      p -= lr * (g + momentum * b)
//
// Single-threaded, any n >= 0 and any alignment of a float; the spans do not overlap. The same bits on every
// instruction set (no fused multiply-add) and wherever the range is split. Cost: reads 12 and writes 8 bytes a
// parameter (plain: 8 and 4), bound by memory; nothing is allocated.
#pragma once

#include <cstdint>

namespace sherd::kernels {

struct SgdScalars {
  double lr, momentum, weight_decay;
  double gradient_scale;  // 1, or what clipping asks for
};

/// Without momentum: scalars.momentum is not used.
void sgd(const SgdScalars& scalars, int64_t n, const float* gradient, float* parameter);
/// `momentum`: zeros before the first step.
void sgd_momentum(const SgdScalars& scalars, int64_t n, const float* gradient, float* parameter, float* momentum);
void sgd_nesterov(const SgdScalars& scalars, int64_t n, const float* gradient, float* parameter, float* momentum);

}  // namespace sherd::kernels
