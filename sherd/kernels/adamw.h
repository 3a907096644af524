// AdamW and Adam on fp32 spans: torch.optim's mathematics in one pass over memory.
//
//   g = gradient * gradient_scale
//   adamw: p *= 1 - lr * weight_decay    adam: g += weight_decay * p
//   m = lerp(m, g, 1 - beta1)            v = beta2 * v + (1 - beta2) * g * g
//   p -= (lr / bias_correction1) * m / (sqrt(v) / bias_correction2_sqrt + eps)
//
// Single-threaded; callers split the range over threads (kernels/parallel.h). Any n >= 0 and any alignment of a float;
// the four spans do not overlap. The result is the same bits on every instruction set (no fused multiply-add, correctly
// rounded square root and division) and wherever the range is split. Against torch it differs by roundings only: eps
// and lr are multiplied by bias_correction2_sqrt beforehand, which saves a division.
// Moments that have decayed below the smallest normal fp32 become zero: a parameter without gradients would otherwise
// keep denormals for ever (0.95 x rounds back to x), 1.6 times as slow in cache on the AMD core where it was tried.
// Beside eps it is nothing, and unlike a processor's flush-to-zero mode it gives the same bits on every machine. Cost:
// reads 16 and writes 12 bytes a parameter, bound by memory; nothing is allocated.
#pragma once

#include <cstdint>

namespace sherd::kernels {

/// The scalars of one step. Derived factors (1 - beta2, ...) are taken in fp64 and rounded to fp32 once.
struct AdamWScalars {
  double lr, beta1, beta2, eps, weight_decay;
  double bias_correction1;       // 1 - beta1^step
  double bias_correction2_sqrt;  // sqrt(1 - beta2^step)
  double gradient_scale;         // 1, or what clipping asks for
};

void adamw(const AdamWScalars& scalars, int64_t n, const float* gradient, float* parameter, float* m, float* v);
void adam(const AdamWScalars& scalars, int64_t n, const float* gradient, float* parameter, float* m, float* v);

}  // namespace sherd::kernels
