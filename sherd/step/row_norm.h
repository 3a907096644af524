// A p-norm of rows that are spread over ranks: the same bits on every rank and for any number of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <span>

#include "sherd/base/exact_sum.h"

namespace sherd {

/// Of any order but 0, with torch's meanings: infinity is the largest, -infinity the smallest. A row's powers are
/// summed in fp64, in an order that depends on its length alone, and rows are added exactly.
class RowNorm {
 public:
  explicit RowNorm(double order);

  /// Adds rows of `width` values each, of any type; none may be there.
  void add(const at::Tensor& rows, int64_t width);
  /// What other ranks need to know of a rank's rows.
  struct Part {
    std::array<double, ExactSum::kDigits + 1> digits;
    double extreme;
  };
  Part part() const { return {sum_.digits(), extreme_}; }
  /// The norm of the rows of all parts.
  double of(std::span<const Part> parts) const;

 private:
  double of_row(const double* row, int64_t width) const;

  double order_;
  double extreme_;  // for an infinite order
  ExactSum sum_;
};

}  // namespace sherd
