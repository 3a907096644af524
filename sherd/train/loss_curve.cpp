#include "sherd/train/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

namespace sherd {
namespace {

constexpr double kWidth = 800, kHeight = 450;
constexpr double kLeft = 70, kRight = 20, kTop = 44, kBottom = 56;
constexpr const char* kTrainColor = "#1f6feb";
constexpr const char* kValidationColor = "#d9480f";

/// From a range of values to a range of pixels, with round ticks.
struct Axis {
  double low, high, tick;
  double first_pixel, last_pixel;

  double pixel(double value) const { return first_pixel + (value - low) / (high - low) * (last_pixel - first_pixel); }
};

/// The smallest of 1, 2, 5 x 10^k that cuts `span` into at most `ticks` pieces.
double round_tick(double span, int ticks) {
  const double power = std::pow(10.0, std::floor(std::log10(span / ticks)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (span / (factor * power) <= ticks) return factor * power;
  }
  return 10.0 * power;
}

/// An axis that begins and ends at a tick.
Axis make_axis(double low, double high, int ticks, double first_pixel, double last_pixel) {
  if (high - low < 1e-9 * std::max(1.0, std::abs(high))) {
    const double margin = std::max(0.5, std::abs(high) * 0.1);
    low -= margin;
    high += margin;
  }
  const double tick = round_tick(high - low, ticks);
  return {std::floor(low / tick) * tick, std::ceil(high / tick) * tick, tick, first_pixel, last_pixel};
}

std::vector<CurvePoint> finite_points(std::span<const CurvePoint> points) {
  std::vector<CurvePoint> finite;
  std::copy_if(points.begin(), points.end(), std::back_inserter(finite),
               [](const CurvePoint& point) { return std::isfinite(point.loss); });
  return finite;
}

/// At most the lowest and the highest point of every column of pixels, in the order of steps.
std::vector<CurvePoint> thin(const std::vector<CurvePoint>& points, const Axis& x) {
  std::vector<CurvePoint> kept;
  for (size_t begin = 0; begin < points.size();) {
    const double column = std::floor(x.pixel(static_cast<double>(points[begin].step)));
    size_t end = begin + 1;
    while (end < points.size() && std::floor(x.pixel(static_cast<double>(points[end].step))) == column) ++end;
    const auto [low, high] =
        std::minmax_element(points.begin() + begin, points.begin() + end,
                            [](const CurvePoint& a, const CurvePoint& b) { return a.loss < b.loss; });
    kept.push_back(low < high ? *low : *high);
    if (low != high) kept.push_back(low < high ? *high : *low);
    begin = end;
  }
  return kept;
}

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

void draw_text(std::string& svg, double x, double y, std::string_view anchor, std::string_view text) {
  fmt::format_to(std::back_inserter(svg), "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y,
                 anchor, escape(text));
}

void draw_line(std::string& svg, double x1, double y1, double x2, double y2, std::string_view color) {
  fmt::format_to(std::back_inserter(svg),
                 "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1, x2, y2,
                 color);
}

void draw_axes(std::string& svg, const Axis& x, const Axis& y) {
  for (double value = x.low; value <= x.high + x.tick / 2; value += x.tick) {
    draw_line(svg, x.pixel(value), y.first_pixel, x.pixel(value), y.last_pixel, "#eaeef2");
    draw_text(svg, x.pixel(value), y.first_pixel + 18, "middle", fmt::format("{:.0f}", value));
  }
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(y.tick) - 1e-9)), 0, 12);
  for (double value = y.low; value <= y.high + y.tick / 2; value += y.tick) {
    draw_line(svg, x.first_pixel, y.pixel(value), x.last_pixel, y.pixel(value), "#eaeef2");
    const double shown = std::abs(value) < y.tick / 2 ? 0.0 : value;
    draw_text(svg, x.first_pixel - 8, y.pixel(value) + 4, "end", fmt::format("{:.{}f}", shown, decimals));
  }
  draw_line(svg, x.first_pixel, y.first_pixel, x.last_pixel, y.first_pixel, "#57606a");
  draw_line(svg, x.first_pixel, y.first_pixel, x.first_pixel, y.last_pixel, "#57606a");
  draw_text(svg, (x.first_pixel + x.last_pixel) / 2, kHeight - 14, "middle", "step");
  draw_text(svg, x.first_pixel, y.last_pixel - 8, "end", "loss");
}

void draw_curve(std::string& svg, const std::vector<CurvePoint>& points, const Axis& x, const Axis& y,
                std::string_view color) {
  if (points.empty()) return;
  auto out = std::back_inserter(svg);
  fmt::format_to(out, "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-linejoin=\"round\" points=\"",
                 color);
  for (const CurvePoint& point : thin(points, x)) {
    fmt::format_to(out, "{:.1f},{:.1f} ", x.pixel(static_cast<double>(point.step)), y.pixel(point.loss));
  }
  svg += "\"/>\n";
  if (points.size() <= 60) {
    for (const CurvePoint& point : points) {
      fmt::format_to(out, "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"/>\n",
                     x.pixel(static_cast<double>(point.step)), y.pixel(point.loss), color);
    }
  }
}

void draw_legend(std::string& svg, double y, std::string_view name, std::string_view color) {
  const double x = kWidth - kRight - 150;
  fmt::format_to(std::back_inserter(svg), "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"18\" height=\"3\" fill=\"{}\"/>\n",
                 x, y - 5, color);
  draw_text(svg, x + 26, y, "start", name);
}

}  // namespace

std::string loss_curve_svg(std::span<const CurvePoint> train, std::span<const CurvePoint> validation,
                           std::string_view title) {
  const std::vector<CurvePoint> train_points = finite_points(train), validation_points = finite_points(validation);
  std::vector<CurvePoint> all = train_points;
  all.insert(all.end(), validation_points.begin(), validation_points.end());
  if (all.empty()) all.push_back({});
  const auto [first, last] = std::minmax_element(
      all.begin(), all.end(), [](const CurvePoint& a, const CurvePoint& b) { return a.step < b.step; });
  const auto [low, high] = std::minmax_element(
      all.begin(), all.end(), [](const CurvePoint& a, const CurvePoint& b) { return a.loss < b.loss; });
  Axis x = make_axis(static_cast<double>(first->step), static_cast<double>(last->step), 10, kLeft, kWidth - kRight);
  if (x.tick < 1) x = {x.low, x.low + 10, 1, x.first_pixel, x.last_pixel};
  const Axis y = make_axis(low->loss, high->loss, 8, kHeight - kBottom, kTop);

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\" fill=\"#24292f\">\n<rect width=\"{0}\" height=\"{1}\" "
      "fill=\"#ffffff\"/>\n",
      kWidth, kHeight);
  draw_text(svg, kWidth / 2, 24, "middle", title);
  draw_axes(svg, x, y);
  draw_curve(svg, train_points, x, y, kTrainColor);
  draw_curve(svg, validation_points, x, y, kValidationColor);
  draw_legend(svg, kTop + 14, "training", kTrainColor);
  if (!validation_points.empty()) draw_legend(svg, kTop + 32, "validation", kValidationColor);
  svg += "</svg>\n";
  return svg;
}

}  // namespace sherd
