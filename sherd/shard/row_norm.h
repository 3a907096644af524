// A p-norm of rows that are spread over ranks: the same bits on every rank and for any number of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "sherd/base/exact_sum.h"

namespace sherd {

/// Of any order but 0, with torch's meanings: infinity is the largest, -infinity the smallest. A row's powers are
/// summed in fp64, in an order that depends on its length alone, and rows are added exactly.
class RowNorm {
 public:
  explicit RowNorm(double order);

  /// Adds rows of `width` values each, of any type; none may be there.
  void add(const at::Tensor& rows, int64_t width);
  /// What other ranks need to know.
  std::vector<double> parts() const;
  /// The norm of all rows whose parts stand in `all`, one after the other.
  double of(std::span<const double> all) const;

 private:
  double of_row(const double* row, int64_t width) const;

  double order_;
  double extreme_;  // for an infinite order
  ExactSum sum_;
};

}  // namespace sherd
