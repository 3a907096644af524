// A rank that stops or raises in forward, backward, reduction or step: the others end with an error that names it.
#include <ATen/ops/square.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <csignal>

#include "sherd/base/error.h"
#include "sherd/engine/engine.h"
#include "tests/engine/plain_training.h"
#include "tests/support/engine_options.h"
#include "tests/support/refuse_huge_pages.h"

namespace sherd::testing {
namespace {

enum class Phase { forward, backward, reduce, step };
constexpr std::array<const char*, 4> kPhases = {"forward", "backward", "reduce", "step"};
constexpr int kTroubled = 1;

class EngineFaults : public ::testing::TestWithParam<std::tuple<Kind, Phase>> {
 protected:
  using Trouble = std::function<void()>;

  /// Two good steps, then one in which rank 1 meets the trouble. Returns every rank's end.
  static std::vector<int> train(const Trouble& trouble, std::string_view told, std::chrono::milliseconds timeout) {
    const auto [kind, phase] = GetParam();
    const ModelImpl<BlockImpl> original;
    const Values start = values_of(const_cast<ModelImpl<BlockImpl>&>(original));
    return run_processes(
        3,
        [&, kind = kind, phase = phase](const World& world) {
          ThreadGroup none(1);
          const auto transport = make_transport(world, kind, none);
          const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
          Engine engine(model, transport, with_strategy("zero3"), source_of(start));
          try {
            for (int step = 0; step < 4; ++step) {
              const bool now = step == 2 && world.rank == kTroubled;
              one_step(engine, *model, [&](Phase here) {
                if (now && here == phase) trouble();
              });
            }
            ADD_FAILURE() << "rank " << world.rank << " noticed nothing";
          } catch (const std::exception& error) {
            transport->abort(error.what());
            const std::string text = error.what();
            EXPECT_NE(text.find(told), std::string::npos) << "rank " << world.rank << ": " << text;
          }
        },
        timeout);
  }

 private:
  static void one_step(Engine& engine, ModelImpl<UnitModule<BlockImpl>>& model, const std::function<void(Phase)>& at) {
    at::Tensor x = at::ones({5, 6});
    x.set_requires_grad(true);
    const at::Tensor loss = engine.forward([&] {
      at(Phase::forward);
      const at::Tensor y = model.forward(x);
      y.register_hook([&](const at::Tensor&) { at(Phase::backward); });  // the first node of backward
      return y.sum();
    });
    // The last one: all gradients are there, and the last units' are still to be reduced.
    x.register_hook([&](const at::Tensor&) { at(Phase::reduce); });
    engine.backward(loss);
    at(Phase::step);
    engine.step();
  }
};

INSTANTIATE_TEST_SUITE_P(All, EngineFaults,
                         ::testing::Combine(::testing::Values(Kind::host, Kind::gloo),
                                            ::testing::Values(Phase::forward, Phase::backward, Phase::reduce,
                                                              Phase::step)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", name_of(std::get<0>(info.param)),
                                              kPhases[static_cast<size_t>(std::get<1>(info.param))]);
                         });

TEST_P(EngineFaults, ARankThatStopsIsNamedAfterTheTimeOut) {
  const auto statuses = train([] { raise(SIGSTOP); }, "rank 1 is stopped", std::chrono::milliseconds(800));
  EXPECT_EQ(statuses[0], 0);
  EXPECT_EQ(statuses[2], 0);
  EXPECT_TRUE(WIFSIGNALED(statuses[kTroubled])) << "it was to be stopped until the end";
}

TEST_P(EngineFaults, ARankThatRaisesTellsTheOthersWhy) {
  const auto statuses =
      train([] { throw std::runtime_error("enough of this"); }, "enough of this", std::chrono::seconds(20));
  EXPECT_EQ(statuses, (std::vector<int>{0, 0, 0}));
}

TEST_P(EngineFaults, ARankThatIsKilledIsNamed) {
  const auto statuses = train([] { raise(SIGKILL); }, "rank 1 died", std::chrono::seconds(20));
  EXPECT_EQ(statuses[0], 0);
  EXPECT_EQ(statuses[2], 0);
}

TEST(EngineFault, AWritePastTorchIsUndoneAndNamed) {
  const auto statuses = run_processes(2, [](const World& world) {
    const auto transport = HostSegment::connect(world);
    const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
    Engine engine(model, transport, with_strategy("zero3"),
                  source_of(values_of(*std::make_shared<ModelImpl<BlockImpl>>())));
    float before = 0, written = 0;
    std::string said;
    try {
      engine.backward(engine.forward([&] {
        const at::Tensor y = model->forward(at::ones({5, 6}));
        volatile float* first = const_cast<float*>(model->entry.const_data_ptr<float>());
        before = *first;
        if (world.rank == 1) *first = before + 1;
        written = *first;
        return y.sum();
      }));
    } catch (const FaultError& error) {
      said = error.what();
    }
    EXPECT_NE(said.find("write in place to parameter 'entry' of the root"), std::string::npos) << said;
    EXPECT_EQ(written, world.rank == 1 ? before + 1 : before);
    engine.forward([&] {
      EXPECT_EQ(*model->entry.const_data_ptr<float>(), before);
      return at::ones({1});
    });
  });
  EXPECT_EQ(statuses, (std::vector<int>{0, 0}));
}

// Layers of more than 2 MiB.
std::vector<at::Tensor> train_large_layers(const World& world, Kind kind, const Values& start) {
  ThreadGroup none(1);
  const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(600, 1000);
  Engine engine(model, make_transport(world, kind, none), clipping(), source_of(start));
  for (int step = 0; step < 2; ++step) {
    const at::Tensor x = training_input(world.rank, step, {5, 600});
    engine.backward(engine.forward([&] { return model->forward(x).square().mean(); }));
    engine.step();
  }
  std::vector<at::Tensor> result;
  for (const auto& shard : engine.shards()) result.push_back(shard.values.clone());
  return result;
}

TEST(EngineFault, WithoutHugePagesTrainingIsTheSame) {
  for (const Kind kind : {Kind::host, Kind::gloo}) {
    const auto statuses = run_processes(2, [&](const World& world) {
      const Values start = values_of(*std::make_shared<ModelImpl<BlockImpl>>(600, 1000));
      const auto expected = train_large_layers(world, kind, start);
      refuse_huge_pages();
      std::byte here;
      ASSERT_EQ(madvise(&here, 1, MADV_HUGEPAGE), -1);
      ASSERT_EQ(errno, EINVAL);
      const auto without = train_large_layers(world, kind, start);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(without[i], expected[i])) << i;
    });
    EXPECT_EQ(statuses, (std::vector<int>{0, 0})) << name_of(kind);
  }
}

}  // namespace
}  // namespace sherd::testing
