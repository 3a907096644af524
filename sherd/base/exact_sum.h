// A sum of fp64 values that is rounded only when it is read: neither order nor grouping changes its bits.
//
// A fixed-point number as wide as fp64 reaches, in 32-bit digits (Kulisch, "Very fast and exact accumulation of
// products", Computing 91, 2011): adding touches three digits, a few nanoseconds.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace sherd {

class ExactSum {
 public:
  static constexpr size_t kDigits = 69;  // 2^-1074 up to the sum of 2^33 of the largest numbers

  /// `value` is not negative. Infinity and NaN make the sum what IEEE 754 says.
  void add(double value);
  /// What a peer's digits() have sent.
  void add_digits(std::span<const double> digits);

  /// The sum as kDigits + 1 numbers that a double holds exactly; lowest digit first, what is not finite last.
  std::array<double, kDigits + 1> digits() const;
  /// The sum, within 1 ulp; the same bits for the same sum.
  double value() const;

 private:
  static constexpr uint32_t kAdditions = uint32_t{1} << 30;
  void carry();

  std::array<uint64_t, kDigits> digits_{};
  uint32_t room_ = kAdditions;  // how many additions are sure not to overflow a digit
  double not_finite_ = 0;
};

}  // namespace sherd
