// Work on whole matrices that are spread over ranks by rows: each matrix has an executor, the rank that sees all of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "sherd/comm/transport.h"

namespace sherd {

/// This rank's rows (by the chunk rule) of a matrix: [own rows * columns] fp32.
struct SpreadMatrix {
  int64_t rows = 0, columns = 0;
  at::Tensor own;
};

/// Replaces each matrix's rows by those of work(matrix), [rows, columns] to the same shape. Collective, with the same
/// matrices in the same order on all ranks. In rounds of one matrix a rank, the most expensive first; a round moves each
/// matrix twice, and holds two matrices of the largest size on each rank.
void run_on_executors(Transport& transport, std::vector<SpreadMatrix>& matrices,
                      const std::function<at::Tensor(const at::Tensor&)>& work);

}  // namespace sherd
