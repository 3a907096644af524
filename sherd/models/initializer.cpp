#include "sherd/models/initializer.h"

#include <cmath>
#include <numbers>

#include "sherd/base/fnv.h"

namespace sherd {
namespace {

// The finalizer of splitmix64: every input bit changes half of the output bits.
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

uint64_t hash_name(const std::string& name) {
  Fnv hash;
  hash.add(name);
  return hash.value();
}

// Elements 2k and 2k + 1 are the two values of one Box-Muller draw, from the k-th number of the parameter's stream.
class NormalStream {
 public:
  NormalStream(uint64_t seed, const std::string& fqn) : key_(mix(seed + kStep) ^ hash_name(fqn)) {}

  std::pair<double, double> pair(uint64_t index) const {
    const uint64_t bits = mix(mix(key_ + index * kStep) + kStep);
    const double u = (static_cast<double>(bits >> 32) + 0.5) * 0x1p-32;  // in (0, 1)
    const double v = static_cast<double>(bits & 0xffffffffULL) * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(u));
    const double angle = 2.0 * std::numbers::pi * v;
    return {radius * std::cos(angle), radius * std::sin(angle)};
  }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15ULL;
  uint64_t key_;
};

}  // namespace

ParameterSource seeded_normal(uint64_t seed, double std) {
  return [seed, std](const RowRange& range, float* out) {
    const auto count = static_cast<uint64_t>(range.rows * range.row_elements);
    if (range.fqn.ends_with("norm.weight")) {
      std::fill(out, out + count, 1.0F);
      return;
    }
    if (range.fqn.ends_with("bias")) {
      std::fill(out, out + count, 0.0F);
      return;
    }
    const NormalStream stream(seed, range.fqn);
    const auto first = static_cast<uint64_t>(range.first_row * range.row_elements);
    for (uint64_t i = first; i < first + count;) {
      const auto [even, odd] = stream.pair(i / 2);
      if (i % 2 == 0) {
        out[i - first] = static_cast<float>(std * even);
        if (++i == first + count) break;
      }
      out[i - first] = static_cast<float>(std * odd);
      ++i;
    }
  };
}

}  // namespace sherd
