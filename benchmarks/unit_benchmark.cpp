// What a unit costs beside its module, from C++: forward and backward of a chain of small units, sharded and plain, on
// one rank. python_overhead.py measures the same chain from Python and shows the difference, which is Python's part.
//
//   taskset -c 0 bench_unit      prints {"forward_us": ..., "backward_us": ...} a unit, from the least of many steps
#include <ATen/Parallel.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sherd/comm/connect.h"
#include "sherd/engine/engine.h"
#include "sherd/shard/module_values.h"
#include "sherd/shard/unit.h"

namespace {

constexpr int kUnits = 50, kParameters = 9, kSteps = 200;
constexpr int64_t kElements = 8;

/// As many parameters as a Llama block, of next to no work.
struct BlockImpl : torch::nn::Module {
  BlockImpl() {
    for (int i = 0; i < kParameters; ++i)
      weights.push_back(register_parameter("weight" + std::to_string(i), at::ones({kElements})));
  }
  at::Tensor forward(at::Tensor x) {
    for (const auto& weight : weights) x = x * weight;
    return x;
  }
  std::vector<at::Tensor> weights;
};

template <typename Block>
struct Chain : torch::nn::Module {
  Chain() {
    for (int i = 0; i < kUnits; ++i) blocks.push_back(register_module("block" + std::to_string(i), Block()));
  }
  at::Tensor loss(at::Tensor x) {
    for (auto& block : blocks) x = block(x);
    return x.sum();
  }
  std::vector<Block> blocks;
};

struct PlainBlock : torch::nn::ModuleHolder<BlockImpl> {
  using torch::nn::ModuleHolder<BlockImpl>::ModuleHolder;
  at::Tensor operator()(const at::Tensor& x) { return get()->forward(x); }
};

using Clock = std::chrono::steady_clock;
double us(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

/// Microseconds of the fastest step.
struct Least {
  double forward = std::numeric_limits<double>::max(), backward = std::numeric_limits<double>::max();
  void take(Clock::time_point start, Clock::time_point middle, Clock::time_point end) {
    forward = std::min(forward, us(start, middle));
    backward = std::min(backward, us(middle, end));
  }
};

Least plain_steps(const at::Tensor& x) {
  Chain<PlainBlock> chain;
  Least least;
  for (int step = 0; step < kSteps; ++step) {
    const auto start = Clock::now();
    const at::Tensor loss = chain.loss(x);
    const auto middle = Clock::now();
    loss.backward();
    least.take(start, middle, Clock::now());
    chain.zero_grad(/*set_to_none=*/true);
  }
  return least;
}

Least sharded_steps(const at::Tensor& x) {
  const auto chain = std::make_shared<Chain<sherd::Unit<BlockImpl>>>();
  sherd::EngineOptions options;
  options.clip = std::nullopt;
  options.optimizer.lr = 0;
  sherd::Engine engine(chain, sherd::connect(sherd::join_world(std::chrono::seconds(60)), "auto"), options,
                       sherd::module_values(*chain));
  Least least;
  for (int step = 0; step < kSteps; ++step) {
    const auto start = Clock::now();
    const at::Tensor loss = engine.forward([&] { return chain->loss(x); });
    const auto middle = Clock::now();
    engine.backward(loss);
    least.take(start, middle, Clock::now());
    engine.step();
  }
  return least;
}

}  // namespace

int main() {
  at::set_num_threads(1);
  const at::Tensor x = at::ones({2, kElements});
  const Least plain = plain_steps(x), sharded = sharded_steps(x);
  std::printf("{\"forward_us\": %.1f, \"backward_us\": %.1f}\n", (sharded.forward - plain.forward) / kUnits,
              (sharded.backward - plain.backward) / kUnits);
}
