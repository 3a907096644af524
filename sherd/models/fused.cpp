#include "sherd/models/fused.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>

#include "sherd/kernels/parallel.h"
#include "sherd/kernels/reduce.h"
#include "sherd/kernels/rms_norm.h"
#include "sherd/kernels/rotate.h"
#include "sherd/kernels/silu.h"

namespace sherd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a thread takes at least.
constexpr int64_t kElementsAtLeast = 16384;
// The rows whose weight gradient is summed on its own: a matter of bits, so not of the number of threads.
constexpr int64_t kRowsOfPartialSum = 64;

bool has_kernels(const at::Tensor& x) {
  return x.is_cpu() && x.layout() == at::kStrided && x.scalar_type() == at::kFloat && x.is_contiguous();
}

const float* values(const at::Tensor& x) { return x.const_data_ptr<float>(); }
float* writable(const at::Tensor& x) { return x.mutable_data_ptr<float>(); }

void check_first_derivative() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "[models] got a backward with create_graph, expected first derivatives; there are no others here");
}

int64_t rows_at_least(int64_t row_elements) { return std::max<int64_t>(1, kElementsAtLeast / row_elements); }

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, double eps) {
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    const auto y = at::empty_like(x), inverse_rms = at::empty({rows}, x.options());
    kernels::parallel_ranges(rows, rows_at_least(dim), [&](int64_t first, int64_t last) {
      kernels::rms_norm({last - first, dim}, eps, values(x) + first * dim, values(weight), writable(y) + first * dim,
                        writable(inverse_rms) + first);
    });
    ctx->save_for_backward({x, weight, inverse_rms});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    check_first_derivative();
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &inverse_rms = saved[2];
    const auto gradient = gradients[0].contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    const int64_t partials = (rows + kRowsOfPartialSum - 1) / kRowsOfPartialSum;
    const auto dx = at::empty_like(x);
    const bool wants_weight = ctx->needs_input_grad(1);
    const auto sums = wants_weight ? at::zeros({partials, dim}, x.options()) : at::Tensor();
    kernels::parallel_ranges(rows, std::max(kRowsOfPartialSum, rows_at_least(dim)), [&](int64_t begin, int64_t end) {
      // The partial sums whose first row is in this piece.
      for (int64_t k = (begin + kRowsOfPartialSum - 1) / kRowsOfPartialSum; k * kRowsOfPartialSum < end; ++k) {
        const int64_t first = k * kRowsOfPartialSum, count = std::min(rows - first, kRowsOfPartialSum);
        kernels::rms_norm_backward({count, dim}, values(x) + first * dim, values(weight), values(inverse_rms) + first,
                                   values(gradient) + first * dim,
                                   {writable(dx) + first * dim, wants_weight ? writable(sums) + k * dim : nullptr});
      }
    });
    return {dx, wants_weight ? sum_of_rows(sums) : at::Tensor(), at::Tensor()};
  }

  static at::Tensor sum_of_rows(const at::Tensor& sums) {
    const auto total = at::zeros({sums.size(1)}, sums.options());
    for (int64_t k = 0; k < sums.size(0); ++k)
      kernels::add(values(sums) + k * sums.size(1), sums.size(1), writable(total));
    return total;
  }
};

struct SiluProduct : torch::autograd::Function<SiluProduct> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    const auto out = at::empty_like(gate);
    kernels::parallel_ranges(gate.numel(), kElementsAtLeast, [&](int64_t first, int64_t last) {
      kernels::silu_product(last - first, values(gate) + first, values(up) + first, writable(out) + first);
    });
    ctx->save_for_backward({gate, up});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    check_first_derivative();
    const auto saved = ctx->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    const auto gradient = gradients[0].contiguous(), d_gate = at::empty_like(gate), d_up = at::empty_like(up);
    kernels::parallel_ranges(gate.numel(), kElementsAtLeast, [&](int64_t first, int64_t last) {
      kernels::silu_product_backward(last - first, values(gate) + first, values(up) + first, values(gradient) + first,
                                     writable(d_gate) + first, writable(d_up) + first);
    });
    return {d_gate, d_up};
  }
};

void rotate(const at::Tensor& x, const at::Tensor& rope, kernels::Turn turn, const at::Tensor& out) {
  const int64_t time = x.size(1), width = x.size(2), half = rope.size(2);
  const float *cosines = values(rope), *sines = cosines + rope.stride(0);
  kernels::parallel_ranges(x.size(0) * time, rows_at_least(width), [&](int64_t first, int64_t last) {
    kernels::rotate_halves({last - first, width / (2 * half), half}, {cosines, sines, time, first % time}, turn,
                           values(x) + first * width, writable(out) + first * width);
  });
}

struct RotateHalves : torch::autograd::Function<RotateHalves> {
  static at::Tensor forward(AutogradContext* ctx, at::Tensor x, const at::Tensor& rope) {
    rotate(x, rope, kernels::Turn::forward, x);
    ctx->mark_dirty({x});
    ctx->save_for_backward({rope});
    return x;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    check_first_derivative();
    const auto gradient = gradients[0].contiguous(), dx = at::empty_like(gradient);
    rotate(gradient, ctx->get_saved_variables()[0], kernels::Turn::backward, dx);
    return {dx, at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  // A weight that keeps fp32 has its norm computed in fp32, between values of 16 bits.
  if (x.scalar_type() != weight.scalar_type())
    return rms_norm(x.to(weight.scalar_type()), weight, eps).to(x.scalar_type());
  if (!has_kernels(x) || !has_kernels(weight)) return at::rms_norm(x, weight.sizes(), weight, eps);
  return RmsNorm::apply(x, weight, eps);
}

at::Tensor silu_product(const at::Tensor& gate, const at::Tensor& up) {
  if (!has_kernels(gate) || !has_kernels(up)) return at::silu(gate) * up;
  return SiluProduct::apply(gate, up);
}

at::Tensor rotate_halves(at::Tensor x, const at::Tensor& rope) {
  const bool whole_rows = rope.stride(1) == rope.size(2) && rope.stride(2) == 1;
  if (has_kernels(x) && rope.is_cpu() && rope.scalar_type() == at::kFloat && whole_rows)
    return RotateHalves::apply(x, rope);
  const int64_t time = x.size(1), half = rope.size(2);
  const auto table = rope.narrow(1, 0, time).unsqueeze(2);
  const auto cosine = table.select(0, 0), sine = table.select(0, 1);
  const auto halves = x.unflatten(-1, {-1, 2 * half}).chunk(2, -1);
  const auto turned = at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine}, -1);
  return turned.flatten(-2).to(x.scalar_type());  // of 16 bits they were turned in fp32
}

}  // namespace sherd
