// The numbers behind kernels/dynamic_map.h, derived once in fp64.
#pragma once

#include <array>
#include <vector>

#include "sherd/kernels/dynamic_map.h"

namespace sherd::kernels {

/// The arithmetic of encoding gives an index with so many binary digits behind the point.
constexpr int kIndexFraction = 14;

/// Of magnitudes: index 0 is zero, the last one is 1. A signed code is 127 plus or minus the index, an unsigned one the
/// index. What belongs to a decade is looked up by three bits, and stands twice for vectors of sixteen.
struct MapTables {
  /// Of an index with e = index + shift: magnitude = slope[k] * e + offset[k], where k is the exponent of e.
  struct {
    float shift;
    std::array<float, 16> slope, offset;
  } decode;
  /// Class 0 is zero, 1 to 7 are the decades, 8 is one (looked up as class 0, by a line that serves both).
  /// scale * bits + shift, cut to an integer, is the class or one less; edges[class] is where the next begins.
  /// index + k = min(slope[class] * a + 8/9 * 2^(class + k - 1), 2^(class + k) - 1/2), all times 2^kIndexFraction;
  /// k = 0 signed, 1 unsigned.
  struct {
    float scale, shift;
    std::array<float, 16> edges, slope;
  } encode;
  /// The same for indices that are rounded: (bits16 - first) * rate >> 16 with the upper 16 bits is the class or one
  /// less; index = round(min(slope[class] * a + offset[class], top[class])).
  struct {
    int first, rate;
    std::array<float, 16> slope, offset, top;
  } rounding;
  /// The least float that is nearer to magnitude i + 1 than to magnitude i.
  std::vector<float> midpoints;
  std::array<float, 256> codebook;

  /// By search: the index of the magnitude nearest to a >= 0.
  int nearest(float a) const;
};

const MapTables& map_tables(DynamicMap map);

}  // namespace sherd::kernels
