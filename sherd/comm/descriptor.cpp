#include "sherd/comm/descriptor.h"

#include <fmt/format.h>

#include <algorithm>

namespace sherd {

Descriptor::Descriptor(Kind kind, int64_t elements, std::string_view what, int64_t element_bytes)
    : kind(kind), elements(elements), element_bytes(element_bytes) {
  std::copy_n(what.begin(), std::min(what.size(), this->what.size() - 1), this->what.begin());
}

std::string Descriptor::text(std::string_view detail) const {
  constexpr std::array<const char*, 3> kNames = {"exchange", "all_gather", "all_to_all"};
  const auto index = static_cast<size_t>(kind);
  // A peer of another version may send anything.
  const char* name = index < kNames.size() ? kNames[index] : "an unknown collective";
  const std::string_view of(what.data(), std::find(what.begin(), what.end(), '\0') - what.begin());
  return fmt::format("{}{}{} ({} elements{})", name, of.empty() ? "" : " of ", of, elements, detail);
}

std::string mismatch(int me, const Descriptor& mine, int other, const Descriptor& theirs) {
  const bool only_sizes = mine.text() == theirs.text();
  const auto text = [&](const Descriptor& descriptor) {
    return descriptor.text(only_sizes ? fmt::format(" of {} bytes", descriptor.element_bytes) : "");
  };
  return fmt::format("rank {} is in {}, rank {} in {}; try to run the same units in the same order on all ranks", other,
                     text(theirs), me, text(mine));
}

}  // namespace sherd
