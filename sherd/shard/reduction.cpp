#include "sherd/shard/reduction.h"

#include <ATen/ops/add.h>
#include <ATen/ops/div.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/square.h>
#include <ATen/ops/sum.h>

#include "sherd/base/error.h"
#include "sherd/kernels/norm.h"
#include "sherd/kernels/reduce.h"
#include "sherd/kernels/weights.h"

namespace sherd {

namespace {

constexpr int64_t kBlock = 1024;    // elements: a source's block in fp32 stays in the first cache
constexpr int64_t kWide = 1 << 16;  // elements of 16 bits that are widened at once for their squares

kernels::Gradient source_of(const at::Tensor& values) {
  const void* data = values.const_data_ptr();
  if (values.scalar_type() == at::kBFloat16) return static_cast<const kernels::Bf16*>(data);
  if (values.scalar_type() == at::kHalf) return static_cast<const kernels::Fp16*>(data);
  return static_cast<const float*>(data);
}

// Block by block: sources are widened, summed, and rounded to what `out` is.
void sum_of_16_bits(std::span<const at::Tensor> sources, const at::Tensor& out, kernels::Accumulate mode,
                    float divisor) {
  std::vector<kernels::Gradient> from;
  for (const auto& source : sources) from.push_back(source_of(source));
  std::vector<float> wide(sources.size() * kBlock), sum(kBlock);
  std::vector<const float*> pointers;
  for (size_t k = 0; k < sources.size(); ++k) pointers.push_back(wide.data() + k * kBlock);
  const bool narrow = out.scalar_type() != at::kFloat;
  SHERD_CHECK(!narrow || (mode == kernels::Accumulate::overwrite && out.scalar_type() == sources[0].scalar_type()));
  for (int64_t first = 0; first < out.numel(); first += kBlock) {
    const int64_t n = std::min(kBlock, out.numel() - first);
    for (size_t k = 0; k < sources.size(); ++k)
      kernels::widen(kernels::from(from[k], first), n, wide.data() + k * kBlock);
    float* to = narrow ? sum.data() : out.mutable_data_ptr<float>() + first;
    kernels::tree_sum(pointers, n, to, mode, divisor);
    if (narrow) out.narrow(0, first, n).copy_(at::from_blob(sum.data(), {n}));
  }
}

// The same memory: real and imaginary parts beside each other.
at::Tensor as_real(const at::Tensor& complex) { return complex.view(c10::toRealValueType(complex.scalar_type())); }

}  // namespace

void canonical_sum(std::span<const at::Tensor> sources, const at::Tensor& out, Round round, double divisor) {
  if (out.is_complex()) {
    std::vector<at::Tensor> parts;
    for (const auto& source : sources) parts.push_back(as_real(source));
    return canonical_sum(parts, as_real(out), round, divisor);
  }
  const auto mode = round == Round::first ? kernels::Accumulate::overwrite : kernels::Accumulate::add;
  const at::ScalarType type = sources[0].scalar_type();
  const auto narrow_divisor = static_cast<float>(divisor);
  if (out.is_cpu() && type == at::kFloat) {
    std::vector<const float*> pointers;
    for (const auto& source : sources) pointers.push_back(source.const_data_ptr<float>());
    return kernels::tree_sum(pointers, out.numel(), out.mutable_data_ptr<float>(), mode, narrow_divisor);
  }
  if (out.is_cpu() && type != at::kDouble) return sum_of_16_bits(sources, out, mode, narrow_divisor);
  std::vector<at::Tensor> level;
  for (const auto& source : sources) level.push_back(source.to(summed_in(type)));
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
  if (rows.is_complex()) return add_row_squares(as_real(rows), 2 * width, sum);
  const int64_t count = rows.numel() / width;
  if (rows.is_cpu() && rows.scalar_type() == at::kDouble) {
    const double* row = rows.const_data_ptr<double>();
    for (int64_t i = 0; i < count; ++i, row += width) sum.add(kernels::sum_of_squares(row, width));
  } else if (rows.is_cpu() && rows.scalar_type() != at::kFloat) {
    const int64_t at_once = std::max<int64_t>(1, kWide / width);
    for (int64_t i = 0; i < count; i += at_once) {
      const int64_t n = std::min(at_once, count - i);
      add_row_squares(rows.narrow(0, i * width, n * width).to(at::kFloat), width, sum);
    }
  } else if (rows.is_cpu()) {
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
