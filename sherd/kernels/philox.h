// The counter-based generator Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sherd::kernels {

constexpr std::array<uint32_t, 2> kPhiloxFactors = {0xD2511F53, 0xCD9E8D57}, kPhiloxSteps = {0x9E3779B9, 0xBB67AE85};

inline std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{kPhiloxFactors[0]} * counter[0], second = uint64_t{kPhiloxFactors[1]} * counter[2];
    counter = {static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(second),
               static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(first)};
    key[0] += kPhiloxSteps[0];
    key[1] += kPhiloxSteps[1];
  }
  return counter;
}

/// How many numbers of 16 bits one counter gives.
constexpr size_t kPhiloxHalves = 8;

/// Those of a counter, which is `index` and `stream`.
inline void philox_halves(uint64_t key, uint64_t index, uint32_t stream, uint16_t* to) {
  const auto words = philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream, 0},
                            {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
  for (size_t k = 0; k < words.size(); ++k) {
    to[2 * k] = static_cast<uint16_t>(words[k]);
    to[2 * k + 1] = static_cast<uint16_t>(words[k] >> 16);
  }
}

}  // namespace sherd::kernels
