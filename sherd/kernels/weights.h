// What an update reads and writes: weights of 16 bits with or without a master of 32, and gradients.
//
// [Note: Split] A split weight is a bf16 weight and the 16 bits that it lacks: together an fp32 value, without loss.
// The bf16 weight is the value rounded to nearest, of two as near to the larger magnitude (bits + 0x8000, cut), so that
// the lower half is a signed remainder: value = (high << 16) + low as integers. Copies of an fp32 master are rounded in
// the same way: both kinds of master give the same weights. (torch rounds ties to even: one value in 65536 differs.)
// A NaN keeps no payload.
//
// [Note: Stochastic] A bf16 weight without a master is rounded up with the probability of what is cut off, by 16 bits
// of Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) at counter (element / 8, step)
// under the parameter's key: any piece of a parameter, on any machine, gets the same bits.
#pragma once

#include <cstdint>
#include <variant>

namespace sherd::kernels {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

struct Fp32Weights {
  float* values;
  Fp32Weights from(int64_t i) const { return {values + i}; }
};

/// An fp32 master, and the 16-bit copy of it that is computed with: written only.
template <class Half>
struct CopiedWeights {
  float* master;
  Half* copy;
  CopiedWeights from(int64_t i) const { return {master + i, copy + i}; }
};

/// See [Note: Split].
struct SplitWeights {
  Bf16* high;
  int16_t* low;
  SplitWeights from(int64_t i) const { return {high + i, low + i}; }
};

/// See [Note: Stochastic].
struct StochasticWeights {
  Bf16* values;
  int64_t first;  // which element of the parameter values[0] is
  uint64_t key;
  uint32_t step;
  StochasticWeights from(int64_t i) const { return {values + i, first + i, key, step}; }
};

using Weights = std::variant<Fp32Weights, CopiedWeights<Bf16>, CopiedWeights<Fp16>, SplitWeights, StochasticWeights>;
using Gradient = std::variant<const float*, const Bf16*, const Fp16*>;

/// The same from element i on.
inline Weights from(const Weights& weights, int64_t i) {
  return std::visit([i](const auto& kind) { return Weights(kind.from(i)); }, weights);
}
inline Gradient from(const Gradient& gradient, int64_t i) {
  return std::visit([i](const auto* values) { return Gradient(values + i); }, gradient);
}

/// Writes n weights from fp32 values, as an update does: for first values, and for those of a checkpoint.
void store_weights(const Weights& weights, int64_t n, const float* values);
/// The fp32 values of n weights: the master's where there is one.
void load_weights(const Weights& weights, int64_t n, float* values);
/// The fp32 values of a gradient.
void widen(const Gradient& gradient, int64_t n, float* values);

}  // namespace sherd::kernels
