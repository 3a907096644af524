#include "sherd/recompute/recompute_policy.h"

#include <charconv>

#include "sherd/base/error.h"

namespace sherd {

RecomputePolicy RecomputePolicy::parse(std::string_view text) {
  if (text == "none") return {0};
  if (text == "full") return {1};
  constexpr std::string_view kEvery = "every:";
  if (text.starts_with(kEvery)) {
    const std::string_view number = text.substr(kEvery.size());
    int every = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), every);
    if (error == std::errc() && end == number.data() + number.size() && every >= 1) return {every};
  }
  config_error("recompute", "got \"{}\", expected {}; try full", text, kForm);
}

std::string RecomputePolicy::text() const {
  if (every == 0) return "none";
  return every == 1 ? "full" : fmt::format("every:{}", every);
}

}  // namespace sherd
