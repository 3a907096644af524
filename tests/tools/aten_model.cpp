// aten_model OUT STEPS [RULE [8bit]]
//
// Trains a model of torch::nn modules alone with sherd's engine, on as many ranks as the launcher says; rank r writes
// OUT.r: for each step the loss and the gradient norm (doubles), then its rows of all parameters by name (fp32). With a
// rule (adamw, lion, ..., muon) blocks are wider, losses are scaled, the rate has a schedule and the second step
// overflows. tests/python/test_same_bits.py trains the same from Python.
#include <ATen/ops/arange.h>
#include <ATen/ops/gelu.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/utils.h>

#include <algorithm>
#include <fstream>

#include "sherd/comm/connect.h"
#include "sherd/engine/engine.h"
#include "sherd/models/chunked_loss.h"
#include "sherd/shard/module_values.h"
#include "sherd/shard/unit.h"

namespace {

constexpr int64_t kVocab = 61, kRows = 3, kTime = 11;

struct Sizes {
  int64_t width = 23, hidden = 37;
};
constexpr Sizes kWide{64, 128};  // whole blocks of 8-bit moments on a rank

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(const Sizes& sizes)
      : norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({sizes.width})))),
        up(register_module("up", torch::nn::Linear(sizes.width, sizes.hidden))),
        down(register_module("down", torch::nn::Linear(sizes.hidden, sizes.width))) {}
  at::Tensor forward(const at::Tensor& x) { return x + down(at::gelu(up(norm(x)))); }
  torch::nn::LayerNorm norm;
  torch::nn::Linear up, down;
};

struct Net : torch::nn::Module {
  explicit Net(const Sizes& sizes) : embed(register_module("embed", torch::nn::Embedding(kVocab, sizes.width))) {
    for (int i = 0; i < 3; ++i)
      blocks.push_back(register_module("block" + std::to_string(i), sherd::Unit<BlockImpl>(sizes)));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({sizes.width})));
    head = register_module("head", torch::nn::Linear(torch::nn::LinearOptions(sizes.width, kVocab).bias(false)));
  }
  at::Tensor loss(const at::Tensor& ids, double scale) {
    at::Tensor x = embed(ids.narrow(1, 0, kTime - 1));
    for (auto& block : blocks) x = block(x);
    const at::Tensor targets = ids.narrow(1, 1, kTime - 1).reshape(-1);
    return sherd::linear_cross_entropy(norm(x).reshape({-1, x.size(2)}), head->weight, targets, scale);
  }
  torch::nn::Embedding embed;
  std::vector<sherd::Unit<BlockImpl>> blocks;
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear head{nullptr};
};

at::Tensor tokens(int64_t step, int64_t rank) {
  const at::Tensor i = at::arange(kRows * kTime, at::kLong);
  return ((i * i * 7 + i * 13 + step * 29 + rank * 17) % kVocab).view({kRows, kTime});
}

void write(std::ofstream& file, double value) { file.write(reinterpret_cast<const char*>(&value), sizeof(value)); }

sherd::EngineOptions options_of(const std::vector<std::string>& rule, int64_t steps) {
  sherd::EngineOptions options;
  options.clip = 0.5;
  options.optimizer = {1e-2, 0.9, 0.95, 1e-8, 0.1};
  if (rule.empty()) return options;
  if (rule[0] == "muon") {
    options.muon.emplace();
  } else {
    options.update.kind = sherd::update_kind(rule[0]);
  }
  if (rule.size() > 1) options.moments = sherd::MomentType::eight_bits;
  options.loss_scale = sherd::LossScaleOptions{.initial = 64, .hysteresis = 1};
  options.schedule = {sherd::ScheduleOptions::Kind::linear, 2, steps, 0.1};
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 5) return 2;
  const std::vector<std::string> rule(argv + 3, argv + argc);
  const int64_t steps = std::stoi(argv[2]);
  at::set_num_threads(1);
  torch::manual_seed(0);
  const sherd::World world = sherd::join_world(std::chrono::seconds(60));
  const auto net = std::make_shared<Net>(rule.empty() ? Sizes() : kWide);
  sherd::Engine engine(net, sherd::connect(world, "auto"), options_of(rule, steps), sherd::module_values(*net));
  std::ofstream file(std::string(argv[1]) + "." + std::to_string(world.rank), std::ios::binary);
  for (int64_t step = 0; step < steps; ++step) {
    const bool overflows = !rule.empty() && step == 1;
    const double scale = overflows ? 2e36 : 1.0 / static_cast<double>(kRows * (kTime - 1) * world.size);
    const at::Tensor loss = engine.forward([&] { return net->loss(tokens(step, world.rank), scale); });
    engine.backward(loss);
    write(file, loss.item<double>());
    write(file, engine.step().grad_norm);
  }
  std::vector<sherd::OwnedShard> shards = engine.shards();
  std::sort(shards.begin(), shards.end(), [](const auto& a, const auto& b) { return a.fqn < b.fqn; });
  for (const auto& shard : shards)
    file.write(static_cast<const char*>(shard.values.const_data_ptr()),
               static_cast<std::streamsize>(shard.values.nbytes()));
}
