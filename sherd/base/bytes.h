// Sizes: rounding, and how bytes are shown.
#pragma once

#include <cstdint>
#include <string>

namespace sherd {

/// The smallest multiple of `unit` that is at least `value`.
constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/// value / unit, rounded up.
constexpr int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

/// "1.50 GiB", "12.0 MiB", "640 B".
std::string format_bytes(int64_t bytes);

}  // namespace sherd
