#include "sherd/kernels/map_tables.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace sherd::kernels {
namespace {

constexpr int kDecades = 7;
constexpr double kFixedPoint = 1 << kIndexFraction;

/// How many entries decade i has: 2^(i + k), k = 0 signed, 1 unsigned.
int entries(int decade, int k) { return 1 << (decade + k); }
double upper_end(int decade) { return std::pow(10.0, decade - (kDecades - 1)); }

/// Zero, the means of each decade's intervals, one; each rounded once. (bitsandbytes rounds on the way: within 2e-7.)
std::vector<float> magnitudes(int k) {
  std::vector<float> all = {0.0f};
  for (int i = 0; i < kDecades; ++i)
    for (int j = 0; j < entries(i, k); ++j)
      all.push_back(static_cast<float>(upper_end(i) * (0.1 + 0.9 * (j + 0.5) / entries(i, k))));
  all.push_back(1.0f);
  return all;
}

float at_least(double x) {
  const auto rounded = static_cast<float>(x);
  return rounded < x ? std::nextafter(rounded, std::numeric_limits<float>::infinity()) : rounded;
}

/// Writes an entry for vectors of eight and of sixteen.
void set(std::array<float, 16>& table, int k, double value) {
  table[k & 7] = table[(k & 7) + 8] = static_cast<float>(value);
}

void set_decoding(MapTables& tables, int k) {
  auto& line = tables.decode;
  line.shift = k == 0 ? 0.5f : 1.0f;
  for (int i = 0; i < kDecades; ++i) {
    const int exponent = 127 + i + k, n = entries(i, k);
    // Entry j of the decade has e = n + j + 1/2 (signed) or n + j.
    const double to_mean = k == 0 ? 0.0 : 0.5;
    set(line.slope, exponent, 0.9 * upper_end(i) / n);
    set(line.offset, exponent, upper_end(i) * (0.1 + 0.9 * (to_mean - n) / n));
  }
  // One line for zero and one, e = 0.5 and 128.5, or 1 and 256. Zero comes out as zero, whatever the line is scaled by.
  const int exponent = 126 + k;
  const double slope = k == 0 ? 1.0 / 128 : 1.0 / 255;
  set(line.slope, exponent, slope);
  set(line.offset, exponent, -slope * line.shift);
}

void set_encoding(MapTables& tables, int k) {
  auto& lines = tables.encode;
  std::array<double, kDecades + 1> exponents{};  // of the classes' edges, as scale * bits + shift sees them
  int last = 0;                                  // index of the class
  for (int c = 0; c <= kDecades; ++c) {
    const float edge = tables.midpoints[last];
    set(lines.edges, c, edge);
    exponents[c] = std::bit_cast<uint32_t>(edge);
    if (c < kDecades) {
      set(lines.slope, c + 1, kFixedPoint / upper_end(c) * entries(c, k) / 0.9);
      last += entries(c, k);
    }
  }
  // From the last edge to one this line stays between one's index and the next; it is nothing at what class 0 has.
  set(lines.slope, 0, kFixedPoint * (last + 1 + k + 0.5 - 8.0 / 9 * entries(kDecades, k)));
  // Edge c is to become c + 1/2, give or take less than 1/2: the line through the first and the last one.
  const double scale = kDecades / (exponents.back() - exponents.front());
  lines.scale = static_cast<float>(scale);
  lines.shift = static_cast<float>(0.5 - scale * exponents.front());
  const double of_upper_bits = scale * 65536;
  tables.rounding.rate = static_cast<int>(std::lround(of_upper_bits * 65536));
  tables.rounding.first = static_cast<int>(std::lround(-(0.5 - scale * exponents.front()) / of_upper_bits));
}

void set_rounding(MapTables& tables, int k) {
  auto& lines = tables.rounding;
  for (int i = 0; i < kDecades; ++i) {
    const int c = i + 1, n = entries(i, k);
    set(lines.slope, c, n / (0.9 * upper_end(i)));
    set(lines.offset, c, 8.0 / 9 * n - k - 0.5);
    // A little below the decade's end, so that it is rounded to its last entry.
    set(lines.top, c, 2 * n * (1 - 0x1p-10) - k - 0.5);
  }
  // One line for zero and one: within half an index of 0 at 0, and of one's from the last edge on.
  const auto one = static_cast<double>(tables.midpoints.size());
  set(lines.slope, 0, one);
  set(lines.offset, 0, 0.25);
  set(lines.top, 0, 2 * one);
}

MapTables make_tables(DynamicMap map) {
  const int k = map == DynamicMap::signed_values ? 0 : 1;
  MapTables tables{};
  const std::vector<float> values = magnitudes(k);
  for (size_t i = 0; i + 1 < values.size(); ++i)
    tables.midpoints.push_back(at_least((static_cast<double>(values[i]) + values[i + 1]) / 2));
  for (int code = 0; code < 256; ++code)
    tables.codebook[code] = k == 1 ? values[code] : std::copysign(values[std::abs(code - 127)], code - 126.5f);
  set_decoding(tables, k);
  set_encoding(tables, k);
  set_rounding(tables, k);
  return tables;
}

}  // namespace

int MapTables::nearest(float a) const {
  return static_cast<int>(std::upper_bound(midpoints.begin(), midpoints.end(), a) - midpoints.begin());
}

const MapTables& map_tables(DynamicMap map) {
  static const MapTables kSigned = make_tables(DynamicMap::signed_values);
  static const MapTables kUnsigned = make_tables(DynamicMap::unsigned_values);
  return map == DynamicMap::signed_values ? kSigned : kUnsigned;
}

}  // namespace sherd::kernels
