// silu(gate) * up, the activation between a block's products, and its gradients; fp32.
//
// silu(x) = x / (1 + exp(-x)). The result is the same bits on every instruction set and wherever the range is split, a
// few units in the last place from exact (bounded in tests/kernels/silu_test.cpp). Single-threaded: callers split the
// range. Any n >= 0 and any alignment of a float; nothing is allocated. Cost: reads 8 and writes 4 bytes an element
// forward, reads 12 and writes 8 backward, about 1.0 and 1.4 ns an element in cache on AVX2.
#pragma once

#include <cstdint>

namespace sherd::kernels {

/// exp(x[i]), within 1 unit in the last place: what the kernels with an exponential share, by itself.
void exponential(int64_t n, const float* x, float* out);

/// out may be gate or up.
void silu_product(int64_t n, const float* gate, const float* up, float* out);

/// gradient: of the product. d_gate and d_up may be any of the inputs, but not each other.
void silu_product_backward(int64_t n, const float* gate, const float* up, const float* gradient, float* d_gate,
                           float* d_up);

}  // namespace sherd::kernels
