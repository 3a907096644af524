// A stateless random number: what a counter-based stream draws at a position.
#pragma once

#include <cstdint>

namespace sherd {

/// 64 well-mixed bits of `value` (the finalizer of splitmix64).
constexpr uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

/// Random bits for a key and a counter.
constexpr uint64_t random_bits(uint64_t key, uint64_t counter) { return mix(mix(key) ^ mix(~counter)); }

}  // namespace sherd
