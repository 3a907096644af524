#include "sherd/shard/reduction.h"

#include <ATen/ops/add.h>
#include <ATen/ops/div.h>
#include <ATen/ops/square.h>
#include <ATen/ops/sum.h>

#include "sherd/kernels/norm.h"
#include "sherd/kernels/reduce.h"

namespace sherd {

void canonical_sum(std::span<const at::Tensor> sources, const at::Tensor& out, Round round, float divisor) {
  if (out.is_cpu()) {
    std::vector<const float*> pointers;
    for (const auto& source : sources) pointers.push_back(source.const_data_ptr<float>());
    kernels::tree_sum(pointers, out.numel(), out.mutable_data_ptr<float>(),
                      round == Round::first ? kernels::Accumulate::overwrite : kernels::Accumulate::add, divisor);
    return;
  }
  std::vector<at::Tensor> level(sources.begin(), sources.end());
  while (level.size() > 1) {
    std::vector<at::Tensor> next;
    for (size_t i = 0; i + 1 < level.size(); i += 2) next.push_back(at::add(level[i], level[i + 1]));
    if (level.size() % 2 == 1) next.push_back(level.back());
    level = std::move(next);
  }
  if (divisor != 1) level[0] = at::div(level[0], divisor);
  if (round == Round::later) {
    out.add_(level[0]);
  } else {
    out.copy_(level[0]);
  }
}

void zero_padding(const GroupLayout& layout, const at::Tensor& rank_major) {
  for (int r = 0; r < layout.ranks; ++r) {
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const int64_t used =
          layout.parameters[p].shard_offset + layout.rows(p, r).count * layout.parameters[p].row_elements;
      const int64_t end =
          p + 1 < layout.parameters.size() ? layout.parameters[p + 1].shard_offset : layout.shard_elements;
      if (used < end) rank_major.narrow(0, r * layout.shard_elements + used, end - used).zero_();
    }
  }
}

void add_row_squares(const at::Tensor& rows, int64_t width, ExactSum& sum) {
  if (rows.numel() == 0) return;
  const int64_t count = rows.numel() / width;
  if (rows.is_cpu()) {
    const float* row = rows.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i, row += width) sum.add(kernels::sum_of_squares(row, width));
  } else {
    const at::Tensor squares = rows.view({count, width}).to(at::kDouble).square().sum(1).cpu();
    for (int64_t i = 0; i < count; ++i) sum.add(squares.const_data_ptr<double>()[i]);
  }
}

void add_squares(const GroupLayout& layout, int rank, const at::Tensor& piece, ExactSum& sum) {
  for (size_t p = 0; p < layout.parameters.size(); ++p) {
    const int64_t width = layout.parameters[p].row_elements;
    const int64_t elements = layout.rows(p, rank).count * width;
    add_row_squares(piece.narrow(0, layout.parameters[p].shard_offset, elements), width, sum);
  }
}

}  // namespace sherd
