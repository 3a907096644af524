#include "sherd/engine/save_model.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "sherd/checkpoint/hugging_face.h"
#include "sherd/shard/module_values.h"
#include "tests/checkpoint/temporary_folder.h"
#include "tests/support/engine_options.h"
#include "tests/support/ranks.h"

namespace sherd::testing {
namespace {

/// Parameters in a unit and outside, and buffers of several types.
struct CountingImpl : torch::nn::Module {
  CountingImpl() {
    w = register_parameter("w", at::randn({5, 3}));
    seen = register_buffer("seen", at::full({}, 7, at::kLong));
    mask = register_buffer("mask", at::full({3}, true, at::kBool));
  }
  at::Tensor forward(const at::Tensor& x) { return x.matmul(w.t()); }
  at::Tensor w, seen, mask;
};

struct CountingNet : torch::nn::Module {
  CountingNet() {
    block = register_module("block", Unit<CountingImpl>());
    scale = register_parameter("scale", at::randn({3}));
    mean = register_buffer("mean", at::full({2, 2}, 0.5f));
  }
  Unit<CountingImpl> block{nullptr};
  at::Tensor scale, mean;
};

TEST(SaveWeights, ParametersFromAllRanksAndBuffersFromRankZero) {
  for (const int ranks : {1, 2, 3}) {
    const TemporaryFolder folder;
    torch::manual_seed(1);
    const auto first = std::make_shared<CountingNet>();
    const ParameterSource source = module_values(*first);
    run_ranks(ranks, Kind::threads, [&](std::shared_ptr<Transport> transport) {
      const auto net = std::make_shared<CountingNet>();
      net->mean.fill_(static_cast<double>(transport->rank()) + 1);
      Engine engine(net, transport, with_strategy("zero3"), source);
      EXPECT_EQ(engine.buffers().size(), 3U);
      save_weights(engine, folder.path());
    });
    const SafetensorsFile file(hugging_face_weights(folder.path()));
    EXPECT_EQ(file.header().tensors.size(), 5U);
    EXPECT_TRUE(at::equal(file.read_tensor("block.w"), first->block->w));
    EXPECT_TRUE(at::equal(file.read_tensor("scale"), first->scale));
    EXPECT_TRUE(at::equal(file.read_tensor("mean"), at::full({2, 2}, 1.0f)));
    EXPECT_TRUE(at::equal(file.read_tensor("block.seen"), first->block->seen));
    EXPECT_TRUE(at::equal(file.read_tensor("block.mask"), first->block->mask));
  }
}

}  // namespace
}  // namespace sherd::testing
