// FNV-1a over 64-bit values (bytes are values below 256): for telling things apart, not against malice.
#pragma once

#include <cstdint>
#include <string_view>

namespace sherd {

class Fnv {
 public:
  void add(uint64_t value) { hash_ = (hash_ ^ value) * 0x100000001b3ULL; }
  void add(std::string_view text) {
    for (const char c : text) add(static_cast<unsigned char>(c));
  }
  uint64_t value() const { return hash_; }
  /// The upper 52 bits, which travel as a double.
  double as_double() const { return static_cast<double>(hash_ >> 12); }

 private:
  uint64_t hash_ = 0xcbf29ce484222325ULL;
};

}  // namespace sherd
