// Where a parameter's first values come from: a seeded initializer, or a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace sherd {

/// Names rows of one parameter: rows [first_row, first_row + rows) of dim 0, each of `row_elements` values.
/// A parameter without dimensions has one row of one element.
struct RowRange {
  std::string fqn;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t row_elements = 1;
};

/// Writes rows * row_elements fp32 values, row-major, to `out`. The same values whoever asks for them and in
/// whichever pieces, so that the weights do not depend on the number of ranks. Throws ConfigError.
using ParameterSource = std::function<void(const RowRange& range, float* out)>;

}  // namespace sherd
