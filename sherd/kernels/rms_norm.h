// Root-mean-square norm of rows, and its gradients; fp32 with sums in fp64.
//
//   inv = 1 / sqrt(mean(x^2) + eps)      y = weight * (x * inv)
//   dx = inv * (weight * dy) - x * inv^3 * mean(weight * dy * x)      dweight = sum over rows of dy * (x * inv)
//
// The sums within a row run in 32 lanes that are then folded, so the result is the same bits on every instruction set
// and, dweight apart, wherever the rows are split. Single-threaded, nothing is allocated: one pass over memory each
// way, a row being read again from cache.
#pragma once

#include <cstdint>

namespace sherd::kernels {

struct NormShape {
  int64_t rows, dim;
};

/// inverse_rms: [rows], all that backward needs besides x and weight. y may be x.
void rms_norm(const NormShape& shape, double eps, const float* x, const float* weight, float* y, float* inverse_rms);

struct NormGradients {
  float* dx;       // may be the gradient of y
  float* dweight;  // [dim], added to, row by row; null when it is not wanted
};

void rms_norm_backward(const NormShape& shape, const float* x, const float* weight, const float* inverse_rms,
                       const float* gradient, const NormGradients& out);

}  // namespace sherd::kernels
