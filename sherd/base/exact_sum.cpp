#include "sherd/base/exact_sum.h"

#include <bit>
#include <cmath>

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr int kDigitBits = 32;
constexpr int kMantissaBits = 52;
constexpr int kLowest = -1074;  // the exponent of the lowest digit's lowest bit: fp64's smallest number
constexpr uint64_t kDigitMask = 0xffffffffU;

}  // namespace

void ExactSum::add(double value) {
  if (value == 0) return;
  if (!std::isfinite(value)) {
    not_finite_ += value;
    return;
  }
  SHERD_CHECK(value > 0);
  const auto bits = std::bit_cast<uint64_t>(value);
  const uint64_t exponent = bits >> kMantissaBits, fraction = bits & ((uint64_t{1} << kMantissaBits) - 1);
  const uint64_t mantissa = exponent == 0 ? fraction : fraction | uint64_t{1} << kMantissaBits;
  const uint64_t shift = exponent == 0 ? 0 : exponent - 1;  // mantissa << shift, in units of the smallest number
  const size_t digit = shift / kDigitBits;
  const auto low = mantissa & kDigitMask, high = mantissa >> kDigitBits;  // in halves no shift loses bits
  const uint64_t low_shifted = low << shift % kDigitBits, high_shifted = high << shift % kDigitBits;
  digits_[digit] += low_shifted & kDigitMask;
  digits_[digit + 1] += (low_shifted >> kDigitBits) + (high_shifted & kDigitMask);
  digits_[digit + 2] += high_shifted >> kDigitBits;
  if (--room_ == 0) carry();
}

void ExactSum::add_digits(std::span<const double> digits) {
  SHERD_CHECK(digits.size() == kDigits + 1);
  for (size_t i = 0; i < kDigits; ++i) digits_[i] += static_cast<uint64_t>(digits[i]);
  not_finite_ += digits[kDigits];
  if (--room_ == 0) carry();
}

void ExactSum::carry() {
  for (size_t i = 0; i + 1 < kDigits; ++i) {
    digits_[i + 1] += digits_[i] >> kDigitBits;
    digits_[i] &= kDigitMask;
  }
  room_ = kAdditions;
}

std::array<double, ExactSum::kDigits + 1> ExactSum::digits() const {
  ExactSum carried = *this;
  carried.carry();
  std::array<double, kDigits + 1> result;
  for (size_t i = 0; i < kDigits; ++i) result[i] = static_cast<double>(carried.digits_[i]);
  result[kDigits] = not_finite_;
  return result;
}

double ExactSum::value() const {
  const auto all = digits();
  double sum = not_finite_;
  for (size_t i = kDigits; i-- > 0;) sum += std::ldexp(all[i], static_cast<int>(i) * kDigitBits + kLowest);
  return sum;
}

}  // namespace sherd
