// A model that sherd has never seen, sharded: wrap its blocks in sherd::Unit, give it to an Engine, train.
// A small residual convolutional network learns in which quarter of a noisy picture the bright spot is.
//
//   build/example_shard_your_own                                                       one rank
//   torchrun --nproc-per-node 2 --no-python build/example_shard_your_own
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/utils.h>

#include <cstdio>

#include "sherd/comm/connect.h"
#include "sherd/data/batch.h"
#include "sherd/engine/engine.h"
#include "sherd/shard/module_values.h"
#include "sherd/shard/unit.h"

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(int64_t channels)
      : norm(register_module("norm", torch::nn::GroupNorm(4, channels))),
        conv(register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(channels, channels, 3).padding(1)))) {}
  at::Tensor forward(const at::Tensor& x) { return x + at::relu(conv(norm(x))); }
  torch::nn::GroupNorm norm;
  torch::nn::Conv2d conv;
};

struct Net : torch::nn::Module {
  static constexpr int64_t kChannels = 16;
  Net() : stem(register_module("stem", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, kChannels, 3).stride(2)))) {
    for (int i = 0; i < 4; ++i)
      blocks.push_back(register_module("block" + std::to_string(i), sherd::Unit<BlockImpl>(kChannels)));
    head = register_module("head", torch::nn::Linear(kChannels * 5 * 5, 4));
  }
  at::Tensor forward(const at::Tensor& pictures) {
    at::Tensor x = stem(pictures);
    for (auto& block : blocks) x = block(x);
    return head(x.flatten(1));
  }
  torch::nn::Conv2d stem;
  std::vector<sherd::Unit<BlockImpl>> blocks;
  torch::nn::Linear head{nullptr};
};

struct Pictures {
  at::Tensor pixels, quarters;
};

Pictures draw(int64_t count) {
  Pictures all{at::randn({count, 1, 12, 12}), at::randint(4, {count}, at::kLong)};
  for (int64_t i = 0; i < count; ++i) {
    const auto quarter = all.quarters[i].item<int64_t>();
    all.pixels[i][0].narrow(0, 6 * (quarter / 2), 6).narrow(1, 6 * (quarter % 2), 6).add_(0.5);
  }
  return all;
}

int main() {
  constexpr int64_t kBatch = 16;
  torch::manual_seed(0);  // the same first values and the same pictures on every rank
  const sherd::World world = sherd::join_world(std::chrono::seconds(60));
  const auto net = std::make_shared<Net>();
  sherd::EngineOptions options;
  options.strategy = "zero3";
  options.optimizer.lr = 1e-3;
  sherd::Engine engine(net, sherd::connect(world, "auto"), options, sherd::module_values(*net));

  const sherd::RowSplit mine = sherd::split_rows(kBatch, world.rank, world.size);
  for (int step = 1; step <= 60; ++step) {
    const Pictures all = draw(kBatch);
    const at::Tensor pixels = all.pixels.narrow(0, mine.first, mine.count);
    const at::Tensor quarters = all.quarters.narrow(0, mine.first, mine.count);
    // Gradients are summed over ranks, so each rank adds its part of the mean over the whole batch.
    const at::Tensor loss = engine.forward(
        [&] { return at::cross_entropy_loss(net->forward(pixels), quarters, {}, at::Reduction::Sum) / kBatch; });
    engine.backward(loss);
    const double part = loss.item<double>();
    double sum = 0;
    for (const double value : engine.step(1.0, {&part, 1}).shared) sum += value;
    if (world.rank == 0 && step % 10 == 0) std::printf("step %d loss %.5f\n", step, sum);
  }
}
