// The sum of squares for the global gradient norm, in fp64.
//
// Element i is squared (exactly) and added to lane i % 32, then the lanes are folded 16, 8, 4, 2, 1: an order that
// depends on n only, so the bits are the same on every instruction set. Splitting a span changes the order: who wants
// the same bits must split where others split. Single-threaded, no allocation, 4 bytes read an element.
#pragma once

#include <cstdint>

namespace sherd::kernels {

/// The sum of x[i]^2; 0 for n == 0. Infinities and NaNs come through.
double sum_of_squares(const float* x, int64_t n);
/// The same of fp64, whose squares are rounded; not made for speed.
double sum_of_squares(const double* x, int64_t n);

}  // namespace sherd::kernels
