// Rotary embedding: turns each pair (x[i], x[i + half]) of a head by an angle that depends on the token's position.
//
//   forward    out[i] = x[i] c[i] - x[i + half] s[i]      out[i + half] = x[i + half] c[i] + x[i] s[i]
//   backward   the same with -s: the inverse, and the gradient's turn
//
// The same bits on every instruction set and wherever the tokens are split. Single-threaded, nothing is allocated;
// reads and writes x once (the table stays in cache).
#pragma once

#include <cstdint>

namespace sherd::kernels {

enum class Turn { forward, backward };

/// What is turned: tokens of `heads` heads of 2 * half elements, one after another.
struct Heads {
  int64_t tokens, heads, half;
};

/// Cosines and sines, [positions, half] each. Token t is at position (first + t) % positions.
struct RotaryTable {
  const float* cosines;
  const float* sines;
  int64_t positions;
  int64_t first;
};

/// out may be x, but must not overlap it otherwise.
void rotate_halves(const Heads& shape, const RotaryTable& table, Turn turn, const float* x, float* out);

}  // namespace sherd::kernels
