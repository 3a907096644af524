#include "sherd/engine/broadcast_buffers.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

struct Buffered : torch::nn::Module {
  explicit Buffered(int64_t rank) {
    const auto value = static_cast<double>(rank);
    mean = register_buffer("mean", at::full({3, 2}, value));
    count = register_buffer("count", at::full({}, rank + 7, at::kLong));
    flags = register_buffer("flags", at::full({5}, rank > 0, at::kBool));
    half = register_buffer("half", at::full({3}, value, at::kHalf));
    slanted = register_buffer("slanted", (at::arange(6).view({2, 3}) * (rank + 1)).t());
    empty = register_buffer("empty", at::full({0}, value));
  }
  at::Tensor mean, count, flags, half, slanted, empty;
};

TEST(BroadcastBuffers, AllAreAsOnRankZero) {
  for (const Kind kind : kKinds)
    for (const int ranks : {1, 2, 3}) {
      if (ranks == 1 && kind != Kind::threads) continue;
      run_ranks(ranks, kind, [](Transport& transport) {
        Buffered module(transport.rank()), first(0);
        const void* place = module.mean.const_data_ptr();
        broadcast_buffers(module, transport);
        const auto expected = first.named_buffers();
        for (const auto& item : module.named_buffers())
          EXPECT_TRUE(at::equal(item.value(), expected[item.key()])) << item.key();
        EXPECT_EQ(module.mean.const_data_ptr(), place) << "in place";
      });
    }
}

TEST(BroadcastBuffers, OfDifferentModelsAreAMistake) {
  run_ranks(2, Kind::threads, [](Transport& transport) {
    torch::nn::Module more, other;
    more.register_buffer("mean", at::ones({2}));
    if (transport.rank() == 1) more.register_buffer("count", at::ones({2}));
    EXPECT_THROW(broadcast_buffers(more, transport), ConfigError);
    other.register_buffer("mean", at::ones({2 + transport.rank()}));
    EXPECT_THROW(broadcast_buffers(other, transport), ConfigError);
  });
}

TEST(BroadcastBuffers, ByOptionOfTheEngine) {
  for (const Buffers buffers : {Buffers::keep, Buffers::broadcast}) {
    run_ranks(2, Kind::host, [&](std::shared_ptr<Transport> transport) {
      ModelImpl<BlockImpl> plain;
      const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
      const at::Tensor buffer = model->register_buffer("b", at::full({1}, static_cast<double>(transport->rank())));
      EngineOptions options = clipping();
      options.buffers = buffers;
      const Engine engine(model, transport, options, source_of(values_of(plain)));
      EXPECT_EQ(buffer.item<float>(), buffers == Buffers::keep ? static_cast<float>(transport->rank()) : 0);
    });
  }
}

}  // namespace
}  // namespace sherd::testing
