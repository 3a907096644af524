// A model that sherd has never seen, sharded: wrap its blocks in sherd::Unit, give it to an Engine, train.
//
//   build/example_shard_your_own                                                       one rank
//   torchrun --nproc-per-node 2 --no-python build/example_shard_your_own
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sin.h>
#include <torch/nn/modules/linear.h>
#include <torch/utils.h>

#include <cstdio>

#include "sherd/comm/connect.h"
#include "sherd/engine/engine.h"
#include "sherd/shard/module_values.h"
#include "sherd/shard/unit.h"

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(int64_t width) : linear(register_module("linear", torch::nn::Linear(width, width))) {}
  at::Tensor forward(const at::Tensor& x) { return x + at::relu(linear(x)); }
  torch::nn::Linear linear;
};

struct Net : torch::nn::Module {
  Net() {
    for (int i = 0; i < 4; ++i) blocks.push_back(register_module("block" + std::to_string(i), sherd::Unit<BlockImpl>(64)));
  }
  at::Tensor forward(at::Tensor x) {
    for (auto& block : blocks) x = block(x);
    return x;
  }
  std::vector<sherd::Unit<BlockImpl>> blocks;
};

int main() {
  torch::manual_seed(0);  // the same first values on every rank
  const sherd::World world = sherd::join_world(std::chrono::seconds(60));
  const auto net = std::make_shared<Net>();
  sherd::Engine engine(net, sherd::connect(world, "auto"), {.strategy = "zero3"}, sherd::module_values(*net));

  torch::manual_seed(static_cast<uint64_t>(world.rank) + 1);  // other data on every rank
  for (int step = 1; step <= 50; ++step) {
    const at::Tensor x = at::rand({16, 64});
    const at::Tensor loss = engine.forward([&] { return at::mse_loss(net->forward(x), at::sin(6 * x)) / world.size; });
    engine.backward(loss);
    const double mine = loss.item<double>();
    double sum = 0;
    for (const double part : engine.step(1.0, {&mine, 1}).shared) sum += part;
    if (world.rank == 0 && step % 10 == 0) std::printf("step %d loss %.4f\n", step, sum);
  }
}
