// Micro-benchmarks of the kernels on one thread, each beside its yardstick in the same loop: the two take turns, so
// that a noisy machine hurts both, and medians are reported. Counters: ns per element for each side, and the ratio
// sherd / yardstick. Sizes are chosen beyond the caches, except where said.
//
//   bench_kernels [--benchmark_filter=REGEX] [--benchmark_min_time=SECONDS]
#include <ATen/Parallel.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/zeros_like.h>
#include <benchmark/benchmark.h>

#include <cmath>

#include "sherd/kernels/adamw.h"
#include "sherd/kernels/cross_entropy.h"
#include "sherd/kernels/norm.h"
#include "sherd/kernels/reduce.h"
#include "sherd/kernels/rms_norm.h"
#include "sherd/kernels/rotate.h"
#include "sherd/kernels/silu.h"

namespace {

using sherd::kernels::Accumulate;
using Clock = std::chrono::steady_clock;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <class Body>
double seconds_of(const Body& body) {
  const auto begin = Clock::now();
  body();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Alternates the two bodies, each over `n` elements; the benchmark's own time is that of ours.
template <class Ours, class Yardstick>
void interleave(benchmark::State& state, int64_t n, const Ours& ours, const Yardstick& yardstick) {
  std::vector<double> our_times, their_times;
  ours();
  yardstick();
  for (auto _ : state) {
    their_times.push_back(seconds_of(yardstick));
    our_times.push_back(seconds_of(ours));
    state.SetIterationTime(our_times.back());
  }
  const double to_ns = 1e9 / static_cast<double>(n);
  state.counters["sherd_ns"] = median(our_times) * to_ns;
  state.counters["yardstick_ns"] = median(their_times) * to_ns;
  state.counters["ratio"] = median(our_times) / median(their_times);
}

// Yardstick: torch's fused AdamW on the same tensors: two sets may differ by 30 % in where their pages lie.
void adamw(benchmark::State& state) {
  const int64_t n = state.range(0);
  const at::Tensor p = at::randn({n}), g = at::randn({n}) * 0.01, m = at::zeros({n}), v = at::zeros({n});
  const at::Tensor step = at::zeros({}).fill_(10);
  const sherd::kernels::AdamWScalars scalars{.lr = 1e-4,
                                             .beta1 = 0.9,
                                             .beta2 = 0.95,
                                             .eps = 1e-8,
                                             .weight_decay = 0.1,
                                             .l2 = 0.0,
                                             .bias_correction1 = 1.0 - std::pow(0.9, 10),
                                             .bias_correction2_sqrt = std::sqrt(1.0 - std::pow(0.95, 10)),
                                             .gradient_scale = 1.0};
  interleave(
      state, n,
      [&] {
        sherd::kernels::adamw(scalars, n, g.const_data_ptr<float>(),
                              sherd::kernels::Fp32Weights{p.mutable_data_ptr<float>()},
                              sherd::kernels::Fp32Moments{m.mutable_data_ptr<float>(), v.mutable_data_ptr<float>()});
      },
      [&] { at::_fused_adamw_({p}, {g}, {m}, {v}, {}, {step}, 1e-4, 0.9, 0.95, 0.1, 1e-8, false, false); });
}

// Yardstick: the first source copied, the others added one after another by torch.
void tree_sum(benchmark::State& state) {
  const int64_t count = state.range(0), n = state.range(1);
  std::vector<at::Tensor> sources;
  std::vector<const float*> pointers;
  for (int64_t k = 0; k < count; ++k) {
    sources.push_back(at::randn({n}));
    pointers.push_back(sources.back().const_data_ptr<float>());
  }
  const at::Tensor out = at::zeros({n}), torch_out = at::zeros({n});
  interleave(
      state, n, [&] { sherd::kernels::tree_sum(pointers, n, out.mutable_data_ptr<float>(), Accumulate::overwrite); },
      [&] {
        torch_out.copy_(sources[0]);
        for (int64_t k = 1; k < count; ++k) torch_out.add_(sources[static_cast<size_t>(k)]);
      });
}

// Yardstick: torch's add_ on the same sizes.
void add(benchmark::State& state) {
  const int64_t n = state.range(0);
  const at::Tensor x = at::randn({n}), out = at::zeros({n}), torch_out = at::zeros({n});
  interleave(
      state, n, [&] { sherd::kernels::add(x.const_data_ptr<float>(), n, out.mutable_data_ptr<float>()); },
      [&] { torch_out.add_(x); });
}

// Yardstick: torch's copy_.
void copy(benchmark::State& state) {
  const int64_t n = state.range(0);
  const at::Tensor x = at::randn({n}), out = at::zeros({n}), torch_out = at::zeros({n});
  interleave(
      state, n, [&] { sherd::kernels::copy(x.const_data_ptr<float>(), n, out.mutable_data_ptr<float>()); },
      [&] { torch_out.copy_(x); });
}

// Yardstick: torch's vector norm, which sums in fp32.
void sum_of_squares(benchmark::State& state) {
  const int64_t n = state.range(0);
  const at::Tensor x = at::randn({n});
  double norm = 0;
  interleave(
      state, n, [&] { benchmark::DoNotOptimize(norm += sherd::kernels::sum_of_squares(x.const_data_ptr<float>(), n)); },
      [&] { benchmark::DoNotOptimize(norm += at::linalg_vector_norm(x, 2).item<double>()); });
}

// A block's elementwise parts, in the sizes of a step: rows of `dim`, in cache where a model's would be.
struct Rows {
  int64_t rows, dim, n;
  at::Tensor x, other, gradient, out, out2;
  explicit Rows(const benchmark::State& state)
      : rows(state.range(0)),
        dim(state.range(1)),
        n(rows * dim),
        x(at::randn({rows, dim})),
        other(at::randn({rows, dim})),
        gradient(at::randn({rows, dim})),
        out(at::zeros({rows, dim})),
        out2(at::zeros({rows, dim})) {}
};

const float* in(const at::Tensor& tensor) { return tensor.const_data_ptr<float>(); }
float* to(const at::Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }

// Yardstick: torch's rms_norm.
void rms_norm(benchmark::State& state) {
  const Rows t(state);
  const at::Tensor weight = at::randn({t.dim}), inverse = at::zeros({t.rows});
  interleave(
      state, t.n,
      [&] {
        sherd::kernels::rms_norm({t.rows, t.dim}, 1e-5, in(t.x), in(weight), to(t.out), to(inverse));
      },
      [&] { benchmark::DoNotOptimize(at::rms_norm(t.x, {t.dim}, weight, 1e-5)); });
}

// Yardstick: the backward of torch's rms_norm.
void rms_norm_backward(benchmark::State& state) {
  const Rows t(state);
  const at::Tensor weight = at::randn({t.dim}), inverse = at::zeros({t.rows}), dweight = at::zeros({t.dim});
  sherd::kernels::rms_norm({t.rows, t.dim}, 1e-5, in(t.x), in(weight), to(t.out), to(inverse));
  const at::Tensor leaf = t.x.clone().requires_grad_(), weight_leaf = weight.clone().requires_grad_();
  const at::Tensor y = at::rms_norm(leaf, {t.dim}, weight_leaf, 1e-5);
  interleave(
      state, t.n,
      [&] {
        sherd::kernels::rms_norm_backward({t.rows, t.dim}, in(t.x), in(weight), in(inverse), in(t.gradient),
                                          {to(t.out), to(dweight)});
      },
      [&] {
        leaf.mutable_grad().reset();
        weight_leaf.mutable_grad().reset();
        y.backward(t.gradient, /*retain_graph=*/true);
      });
}

// Yardstick: torch's silu and product.
void silu_product(benchmark::State& state) {
  const Rows t(state);
  interleave(
      state, t.n, [&] { sherd::kernels::silu_product(t.n, in(t.x), in(t.other), to(t.out)); },
      [&] { benchmark::DoNotOptimize(at::silu(t.x) * t.other); });
}

// Yardstick: the four operators of torch's backward.
void silu_product_backward(benchmark::State& state) {
  const Rows t(state);
  const at::Tensor activated = at::silu(t.x);
  interleave(
      state, t.n,
      [&] { sherd::kernels::silu_product_backward(t.n, in(t.x), in(t.other), in(t.gradient), to(t.out), to(t.out2)); },
      [&] {
        benchmark::DoNotOptimize(t.gradient * activated);
        benchmark::DoNotOptimize(at::silu_backward(t.gradient * t.other, t.x));
      });
}

// Heads of 64. Yardstick: the formula in torch's operators.
void rotate_halves(benchmark::State& state) {
  const Rows t(state);
  const at::Tensor rope = at::randn({2, t.rows, 32}), halves = t.x.view({t.rows, -1, 2, 32});
  const at::Tensor cosine = rope[0].unsqueeze(1), sine = rope[1].unsqueeze(1);
  interleave(
      state, t.n,
      [&] {
        sherd::kernels::rotate_halves({t.rows, t.dim / 64, 32}, {in(rope), in(rope) + t.rows * 32, t.rows, 0},
                                      sherd::kernels::Turn::forward, in(t.x), to(t.out));
      },
      [&] {
        const at::Tensor first = halves.select(2, 0), second = halves.select(2, 1);
        benchmark::DoNotOptimize(at::cat({first * cosine - second * sine, second * cosine + first * sine}, -1));
      });
}

// Loss and gradient; dim is the vocabulary. Both read fresh logits. Yardstick: torch's operators, in place where they
// can.
void cross_entropy(benchmark::State& state) {
  const Rows t(state);
  const at::Tensor targets = at::randint(t.dim, {t.rows}, at::kLong), index = targets.unsqueeze(1);
  std::vector<double> losses(static_cast<size_t>(t.rows));
  interleave(
      state, t.n,
      [&] {
        t.out.copy_(t.x);
        sherd::kernels::cross_entropy_gradient({t.rows, t.dim, t.dim, targets.const_data_ptr<int64_t>(), -100}, 1e-3,
                                               to(t.out), losses.data());
      },
      [&] {
        t.out.copy_(t.x);
        const at::Tensor log_softmax = at::_log_softmax(t.out, 1, false);
        benchmark::DoNotOptimize(log_softmax.gather(1, index).sum());
        at::exp(log_softmax).mul_(1e-3).scatter_add_(1, index, at::full({t.rows, 1}, -1e-3));
      });
}

constexpr int64_t kMillion = 1 << 20;
constexpr auto kUnit = benchmark::kMillisecond;

BENCHMARK(adamw)->UseManualTime()->Unit(kUnit)->Arg(4096)->Arg(4 * kMillion)->Arg(16 * kMillion);
BENCHMARK(tree_sum)->UseManualTime()->Unit(kUnit)->ArgsProduct({{1, 2, 3, 4, 8, 16, 64}, {4 * kMillion}});
BENCHMARK(add)->UseManualTime()->Unit(kUnit)->Arg(256 * 1024)->Arg(16 * kMillion);
BENCHMARK(copy)->UseManualTime()->Unit(kUnit)->Arg(256 * 1024)->Arg(4 * kMillion)->Arg(16 * kMillion);
BENCHMARK(sum_of_squares)->UseManualTime()->Unit(kUnit)->Arg(4096)->Arg(16 * kMillion);
BENCHMARK(rms_norm)->UseManualTime()->Unit(kUnit)->Args({512, 512})->Args({512, 4096});
BENCHMARK(rms_norm_backward)->UseManualTime()->Unit(kUnit)->Args({512, 512})->Args({512, 4096});
BENCHMARK(silu_product)->UseManualTime()->Unit(kUnit)->Args({512, 1408})->Args({512, 11008});
BENCHMARK(silu_product_backward)->UseManualTime()->Unit(kUnit)->Args({512, 1408})->Args({512, 11008});
BENCHMARK(rotate_halves)->UseManualTime()->Unit(kUnit)->Args({512, 512})->Args({512, 4096});
BENCHMARK(cross_entropy)->UseManualTime()->Unit(kUnit)->Args({256, 8192})->Args({128, 32000});

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(1);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
