#include "sherd/comm/whereabouts.h"

#include <algorithm>
#include <cstring>

namespace sherd {

void Whereabouts::set_call(std::string_view call) {
  std::array<uint64_t, std::tuple_size_v<decltype(words)>> text;
  const size_t size = std::min(call.size(), sizeof(text) - 1), last = size / sizeof(uint64_t);
  text[last] = 0;
  std::memcpy(text.data(), call.data(), size);
  for (size_t i = 0; i <= last; ++i) words[i].store(text[i], std::memory_order_relaxed);
}

std::string Whereabouts::call() const {
  std::array<uint64_t, std::tuple_size_v<decltype(words)>> text = {};
  for (size_t i = 0; i < text.size(); ++i) text[i] = words[i].load(std::memory_order_relaxed);
  const auto* first = reinterpret_cast<const char*>(text.data());
  return {first, std::find(first, first + sizeof(text), '\0')};
}

std::string where_it_is(const Whereabouts& rank) {
  if (rank.end.load() == Whereabouts::End::finished) return "has finished";
  const std::string call = rank.call();
  return call.empty() ? "is in none of sherd's calls" : "is in " + call;
}

}  // namespace sherd
