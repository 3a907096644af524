// A loss curve as a stand-alone SVG picture: axes with round ticks, grid, legend; no scripts, no external fonts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sherd {

struct CurvePoint {
  int64_t step = 0;
  double loss = 0;
};

/// Draws the training loss, and the validation loss where there is one. Points that are not finite are left out, and
/// long runs are thinned to the width of the picture (each column keeps its lowest and highest point).
std::string loss_curve_svg(std::span<const CurvePoint> train, std::span<const CurvePoint> validation,
                           std::string_view title);

}  // namespace sherd
