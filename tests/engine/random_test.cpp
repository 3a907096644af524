// Dropout: each rank draws numbers of its own, and recompute draws the same again. Ranks are processes: the threads of
// one process share the default generator.
#include <ATen/ops/dropout.h>
#include <ATen/ops/rand.h>
#include <gtest/gtest.h>

#include "sherd/comm/connect.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

struct DropoutBlockImpl : BlockImpl {
  using BlockImpl::BlockImpl;
  at::Tensor forward(const at::Tensor& x) { return at::dropout(BlockImpl::forward(x), 0.5, /*train=*/true); }
};

Values train_with_dropout(const std::shared_ptr<Transport>& transport, const Values& start, RecomputePolicy recompute) {
  const auto model = std::make_shared<ModelImpl<UnitModule<DropoutBlockImpl>>>();
  EngineOptions options = clipping();
  options.recompute = recompute;
  options.seed = 5;
  Engine engine(model, transport, options, source_of(start));
  for (int step = 0; step < 3; ++step) {
    engine.backward(engine.forward([&] { return model->forward(training_input(0, step)).sum(); }));
    engine.step();
  }
  Values rows;
  for (const auto& shard : engine.shards()) rows[shard.fqn] = shard.values.clone();
  return rows;
}

TEST(Random, DropoutIsTheSameWithAndWithoutRecompute) {
  for (const int ranks : {1, 2, 3}) {
    for (const int status : run_processes(ranks, [&](const World& world) {
           at::manual_seed(1);
           ModelImpl<DropoutBlockImpl> plain;
           const Values start = values_of(plain);
           const std::shared_ptr<Transport> transport = connect(world, "auto");
           const Values kept = train_with_dropout(transport, start, {});
           for (const int every : {1, 2}) {
             const Values again = train_with_dropout(transport, start, {every});
             for (const auto& [name, rows] : kept) EXPECT_TRUE(at::equal(rows, again.at(name))) << name;
           }
         }))
      EXPECT_EQ(status, kRankPassed);
  }
}

TEST(Random, EachRankDrawsNumbersOfItsOwn) {
  for (const int status : run_processes(3, [&](const World& world) {
         const std::shared_ptr<Transport> transport = connect(world, "auto");
         ModelImpl<BlockImpl> plain;
         std::vector<double> first;
         for (int times = 0; times < 2; ++times) {
           const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
           EngineOptions options = clipping();
           options.seed = 8;
           const Engine engine(model, transport, options, source_of(values_of(plain)));
           const double drawn = at::rand({1}).item<float>();
           const std::vector<double> all = transport->exchange({&drawn, 1});
           EXPECT_NE(all[0], all[1]);
           EXPECT_NE(all[1], all[2]);
           if (times == 0) first = all;
           EXPECT_EQ(all, first) << "by the seed";
         }
       }))
    EXPECT_EQ(status, kRankPassed);
}

}  // namespace
}  // namespace sherd::testing
