#include "sherd/train/loss_curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace sherd {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// The x,y pairs of the first polyline.
std::vector<std::pair<double, double>> first_curve(const std::string& svg) {
  const size_t begin = svg.find("points=\"") + 8;
  std::istringstream text(svg.substr(begin, svg.find('"', begin) - begin));
  std::vector<std::pair<double, double>> points;
  double x, y;
  for (char comma; text >> x >> comma >> y;) points.emplace_back(x, y);
  return points;
}

TEST(LossCurve, DrawsBothCurvesWithLegendAndAxes) {
  std::vector<CurvePoint> train, validation;
  for (int64_t step = 1; step <= 100; ++step) train.push_back({step, 5.5 * std::exp(-0.02 * step) + 1});
  for (int64_t step = 20; step <= 100; step += 20) validation.push_back({step, 5.7 * std::exp(-0.02 * step) + 1});
  const std::string svg = loss_curve_svg(train, validation, "tiny <zero3> & \"more\"");
  EXPECT_EQ(count(svg, "<polyline"), 2u);
  EXPECT_EQ(count(svg, ">training<"), 1u);
  EXPECT_EQ(count(svg, ">validation<"), 1u);
  EXPECT_EQ(count(svg, "<circle"), validation.size()) << "few points are marked, many are not";
  EXPECT_NE(svg.find("tiny &lt;zero3&gt; &amp; &quot;more&quot;"), std::string::npos);
  EXPECT_EQ(first_curve(svg).size(), train.size());
  const auto points = first_curve(svg);
  for (size_t i = 1; i < points.size(); ++i) {
    EXPECT_GT(points[i].first, points[i - 1].first);
    EXPECT_GE(points[i].second, points[i - 1].second) << "a falling loss goes down the page";
  }
}

TEST(LossCurve, EveryPointIsInsideThePicture) {
  for (const double scale : {1e-6, 1.0, 1e6}) {
    std::vector<CurvePoint> train;
    for (int64_t step = 0; step < 37; ++step) train.push_back({step * 13, scale * std::sin(0.3 * step)});
    for (const auto& [x, y] : first_curve(loss_curve_svg(train, {}, "scales"))) {
      EXPECT_TRUE(x >= 70 && x <= 780) << x;
      EXPECT_TRUE(y >= 44 && y <= 394) << y;
    }
  }
}

TEST(LossCurve, WithoutValidationThereIsNoLegendForIt) {
  const std::vector<CurvePoint> train = {{1, 2.0}, {2, 1.0}};
  EXPECT_EQ(loss_curve_svg(train, {}, "t").find("validation"), std::string::npos);
}

TEST(LossCurve, NoPointsOnePointAndEqualPointsAreDrawn) {
  const std::vector<CurvePoint> one = {{1, 2.0}}, equal = {{1, 2.0}, {2, 2.0}, {3, 2.0}};
  for (const std::string& svg :
       {loss_curve_svg({}, {}, "none"), loss_curve_svg(one, {}, "one"), loss_curve_svg(equal, equal, "equal")}) {
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
    EXPECT_LT(count(svg, "<line"), 40u);
  }
}

TEST(LossCurve, LeavesOutWhatIsNotFinite) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const std::vector<CurvePoint> train = {{1, 2.0}, {2, nan}, {3, inf}, {4, 1.0}};
  EXPECT_EQ(first_curve(loss_curve_svg(train, {}, "t")).size(), 2u);
}

TEST(LossCurve, ThinsLongRunsButKeepsTheSpike) {
  std::vector<CurvePoint> train(200'000);
  for (size_t i = 0; i < train.size(); ++i) train[i] = {static_cast<int64_t>(i), 2.0 + 0.1 * std::sin(0.01 * i)};
  train[77'777].loss = 9.0;
  const std::string svg = loss_curve_svg(train, {}, "long");
  const auto points = first_curve(svg);
  EXPECT_LE(points.size(), 2u * 800);
  const auto top =
      std::min_element(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  EXPECT_LT(top->second, 60) << "the spike reaches the top of the axis";
  EXPECT_LT(svg.size(), 60'000u);
}

}  // namespace
}  // namespace sherd
