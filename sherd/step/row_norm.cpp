#include "sherd/step/row_norm.h"

#include <ATen/ops/abs.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "sherd/shard/reduction.h"

namespace sherd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kAtOnce = 1 << 16;  // elements that are widened
constexpr size_t kLanes = 8;

// NaN wins, as in torch.
double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }
double smaller(double a, double b) { return std::isnan(a) || a < b ? a : b; }

}  // namespace

RowNorm::RowNorm(double order) : order_(order), extreme_(order < 0 ? kInfinity : 0) {}

double RowNorm::of_row(const double* row, int64_t width) const {
  std::array<double, kLanes> lanes;
  lanes.fill(std::isinf(order_) ? extreme_ : 0);
  for (int64_t i = 0; i < width; ++i) {
    double& lane = lanes[static_cast<size_t>(i) % kLanes];
    const double value = std::abs(row[i]);
    if (std::isinf(order_))
      lane = order_ > 0 ? larger(value, lane) : smaller(value, lane);
    else
      lane += order_ == 1 ? value : std::pow(value, order_);
  }
  double result = lanes[0];
  for (size_t i = 1; i < kLanes; ++i) {
    if (!std::isinf(order_))
      result += lanes[i];
    else
      result = order_ > 0 ? larger(lanes[i], result) : smaller(lanes[i], result);
  }
  return result;
}

void RowNorm::add(const at::Tensor& rows, int64_t width) {
  if (rows.numel() == 0) return;
  if (order_ == 2 && rows.is_floating_point() && rows.scalar_type() != at::kDouble)
    return add_row_squares(rows.contiguous().view(-1), width, sum_);
  const at::Tensor flat = (rows.is_complex() ? at::abs(rows) : rows).contiguous().view(-1);
  const int64_t count = flat.numel() / width, at_once = std::max<int64_t>(1, kAtOnce / width);
  for (int64_t first = 0; first < count; first += at_once) {
    const int64_t n = std::min(at_once, count - first);
    const at::Tensor wide = flat.narrow(0, first * width, n * width).to(at::Device(at::kCPU), at::kDouble);
    for (int64_t i = 0; i < n; ++i) {
      const double part = of_row(wide.const_data_ptr<double>() + i * width, width);
      if (std::isinf(order_))
        extreme_ = part;  // a row starts from what came before
      else
        sum_.add(part);
    }
  }
}

double RowNorm::of(std::span<const Part> parts) const {
  ExactSum sum;
  double extreme = order_ < 0 ? kInfinity : 0;
  for (const Part& part : parts) {
    sum.add_digits(part.digits);
    extreme = order_ > 0 ? larger(part.extreme, extreme) : smaller(part.extreme, extreme);
  }
  if (std::isinf(order_)) return extreme;
  return order_ == 2 ? std::sqrt(sum.value()) : std::pow(sum.value(), 1 / order_);
}

}  // namespace sherd
