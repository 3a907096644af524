// What a rank is doing, in a form that can be compared with what its peers are doing.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sherd {

/// One collective as one rank issues it. Plain bytes: it travels as it is.
struct Descriptor {
  enum class Kind : int64_t { exchange, all_gather, all_to_all };

  Kind kind = Kind::exchange;
  int64_t elements = 0, element_bytes = 4;
  std::array<char, 112> what = {};  // "unit 'a'"; cut, and zero-filled

  Descriptor() = default;
  Descriptor(Kind kind, int64_t elements, std::string_view what, int64_t element_bytes = 4);
  bool operator==(const Descriptor&) const = default;
  /// "all_gather of unit 'a' (10 elements)"; where two differ in that alone: "(10 elements of 4 bytes)".
  std::string text(std::string_view detail = {}) const;
};

/// "rank 1 is in ..., rank 0 in ...; try ...", where rank `me` is in `mine` and another rank in something else.
std::string mismatch(int me, const Descriptor& mine, int other, const Descriptor& theirs);

}  // namespace sherd
