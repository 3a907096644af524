#include "cli/visible_text.h"

#include <fmt/format.h>

#include <utility>

namespace sherd {
namespace {

/// Bytes of the UTF-8 sequence that starts with `first`, 0 where none may.
size_t sequence_length(uint8_t first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 0;
}

/// Whether `second` may follow `first`: no overlong forms, no surrogates, nothing beyond U+10FFFF.
bool may_follow(uint8_t first, uint8_t second) {
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

std::string escaped(const std::string& bytes) {
  std::string out;
  for (const char byte : bytes) out += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return out;
}

}  // namespace

std::string VisibleText::add(uint8_t byte) {
  std::string out;
  if (!kept_.empty()) {
    const auto first = static_cast<uint8_t>(kept_.front());
    const bool fits = kept_.size() == 1 ? may_follow(first, byte) : byte >= 0x80 && byte <= 0xBF;
    if (fits) {
      kept_ += static_cast<char>(byte);
      return kept_.size() == sequence_length(first) ? std::exchange(kept_, {}) : std::string();
    }
    out = finish();
  }
  const size_t length = sequence_length(byte);
  const std::string self(1, static_cast<char>(byte));
  if (length > 1) {
    kept_ = self;
  } else if (length == 1 && (byte >= 0x20 || byte == '\n' || byte == '\t') && byte != 0x7F) {
    out += self;
  } else {
    out += escaped(self);
  }
  return out;
}

std::string VisibleText::finish() { return escaped(std::exchange(kept_, {})); }

}  // namespace sherd
