// Overflow under a loss scale, and what is said of gradients that are not finite.
#include <gtest/gtest.h>

#include <cmath>

#include "sherd/base/error.h"
#include "sherd/shard/finite.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

class LossScale : public ::testing::TestWithParam<RankCase> {};
INSTANTIATE_TEST_SUITE_P(All, LossScale, ::testing::ValuesIn(training_cases()), rank_case_name);

using Update = StepReport::Update;
using Model = ModelImpl<UnitModule<BlockImpl>>;

Values start_values() {
  at::manual_seed(11);
  return values_of(*std::make_shared<ModelImpl<BlockImpl>>());
}

/// A step of the toy model; `poison` turns this rank's gradient of the first block's output into infinities.
void backward_of(Engine& engine, Model& model, int rank, int step, bool poison) {
  const at::Tensor x = training_input(rank, step);
  const at::Tensor loss = engine.forward([&] {
    at::Tensor h = at::linear(at::linear(x, model.tied), model.entry);
    for (const auto& block : model.blocks) {
      h = block->forward(h);
      if (poison && block == model.blocks[0])
        h.register_hook([](const at::Tensor& gradient) { return gradient * HUGE_VAL; });
    }
    return at::linear(h, model.tied).sum();
  });
  engine.backward(loss);
}

TEST_P(LossScale, OverflowOnOneRankSkipsTheStepOnAll) {
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    const Values start = start_values();
    run_ranks(GetParam().ranks, GetParam().kind, [&](std::shared_ptr<Transport> transport) {
      EngineOptions options = clipping(strategy);
      options.loss_scale = {.initial = 1024, .window = 2, .hysteresis = 1};
      const auto model = std::make_shared<Model>();
      Engine engine(model, transport, options, source_of(start));
      const std::vector<double> scales = {1024, 1024, 2048, 1024, 512, 512, 1024};
      const std::vector<Update> updates = {Update::made, Update::made, Update::skipped, Update::skipped,
                                           Update::made, Update::made, Update::made};
      for (size_t step = 0; step < scales.size(); ++step) {
        Values before;
        for (const auto& shard : engine.shards()) before[shard.fqn] = shard.values.clone();
        const bool poison = updates[step] == Update::skipped && transport->rank() == transport->size() - 1;
        backward_of(engine, *model, transport->rank(), static_cast<int>(step), poison);
        const StepReport report = engine.step();
        EXPECT_EQ(report.loss_scale, scales[step]) << step;
        EXPECT_EQ(report.update, updates[step]) << step;
        EXPECT_EQ(std::isfinite(report.grad_norm), updates[step] == Update::made);
        bool changed = false;
        for (const auto& shard : engine.shards()) changed = changed || !at::equal(shard.values, before[shard.fqn]);
        if (updates[step] == Update::skipped) {
          EXPECT_FALSE(changed) << step;
        }
      }
      EXPECT_EQ(engine.steps(), 5);
      EXPECT_EQ(engine.skipped_steps(), 2);
    });
  }
}

// A power of two is lost in no rounding.
TEST_P(LossScale, ChangesNoBitsOfFp32) {
  const Values start = start_values();
  std::vector<Values> ends(2);
  for (const bool scaled : {false, true}) {
    run_ranks(GetParam().ranks, GetParam().kind, [&](std::shared_ptr<Transport> transport) {
      EngineOptions options = clipping();
      if (scaled) options.loss_scale = {.kind = ScaleKind::fixed, .initial = 4096};
      const auto model = std::make_shared<Model>();
      Engine engine(model, transport, options, source_of(start));
      for (int step = 0; step < 3; ++step) {
        backward_of(engine, *model, transport->rank(), step, false);
        engine.step();
      }
      if (transport->rank() == 0)
        for (const auto& shard : engine.shards()) ends[scaled ? 1 : 0][shard.fqn] = shard.values.clone();
    });
  }
  for (const auto& [name, values] : ends[0]) EXPECT_TRUE(at::equal(values, ends[1].at(name))) << name;
}

// Gradients of up to 2^7 or so do not fit into fp16 times 2^24: the scale comes down by itself, then training goes on.
TEST(LossScaleInFp16, ComesDownUntilGradientsFit) {
  const Values start = start_values();
  run_ranks(2, Kind::host, [&](std::shared_ptr<Transport> transport) {
    EngineOptions options = clipping();
    options.precision = Precision{at::kFloat, at::kHalf, at::kHalf, Master::fp32, {}};
    options.loss_scale = {.initial = std::exp2(24), .hysteresis = 1};
    const auto model = std::make_shared<Model>();
    Engine engine(model, transport, options, source_of(start));
    for (int step = 0; step < 20; ++step) {
      backward_of(engine, *model, transport->rank(), step, false);
      engine.step();
    }
    EXPECT_GT(engine.skipped_steps(), 2);
    EXPECT_GE(engine.steps(), 5);
    EXPECT_LT(engine.loss_scale(), std::exp2(22));
  });
}

/// What step() says when this goes wrong, on each rank.
std::vector<std::string> errors_of(const EngineOptions& options, const std::function<void(Engine&, Model&, int)>& run) {
  std::vector<std::string> errors(3);
  const Values start = start_values();
  run_ranks(3, Kind::host, [&](std::shared_ptr<Transport> transport) {
    const auto model = std::make_shared<Model>();
    Engine engine(model, transport, options, source_of(start));
    try {
      for (int step = 0; step < 10; ++step) {
        run(engine, *model, transport->rank());
        engine.step();
      }
    } catch (const FaultError& error) {
      errors[static_cast<size_t>(transport->rank())] = error.what();
    }
  });
  return errors;
}

TEST(LossScaleAtItsMinimum, IsAnErrorThatNamesTheFirstParameter) {
  EngineOptions options = clipping();
  options.loss_scale = {.initial = 4, .hysteresis = 1};
  const auto errors = errors_of(
      options, [](Engine& engine, Model& model, int rank) { backward_of(engine, model, rank, 0, rank == 1); });
  for (const auto& error : errors) {
    EXPECT_NE(error.find("smallest loss scale, 1, in step 3"), std::string::npos) << error;
    EXPECT_NE(error.find("the gradient of 'block0.down' in unit 'block0'"), std::string::npos) << error;
    EXPECT_NE(error.find("; try "), std::string::npos) << error;
  }
}

TEST(NonFinite, AGradientNamesItsParameterAndNothingIsUpdated) {
  const auto errors = errors_of(
      clipping(), [](Engine& engine, Model& model, int rank) { backward_of(engine, model, rank, 0, rank == 2); });
  for (const auto& error : errors) {
    EXPECT_NE(error.find("got a gradient norm of"), std::string::npos) << error;
    EXPECT_NE(error.find("in step 1: the first that was not finite was the gradient of 'block0.down' in unit 'block0'"),
              std::string::npos)
        << error;
  }
}

TEST(NonFinite, AnOutputNamesItsUnitAndRank) {
  const auto errors = errors_of(clipping(), [](Engine& engine, Model& model, int rank) {
    const at::Tensor x = training_input(rank, 0);
    engine.backward(engine.forward([&] {
      at::Tensor h = at::linear(at::linear(x, model.tied), model.entry);
      h = model.blocks[0]->forward(h);
      h = model.blocks[1]->forward(rank == 1 ? h * HUGE_VAL : h);
      return at::linear(model.blocks[2]->forward(h), model.tied).sum();
    }));
  });
  for (const auto& error : errors)
    EXPECT_NE(error.find("the output of unit 'block1' in forward (rank 1)"), std::string::npos) << error;
}

TEST(NonFinite, MayPassAsInTorch) {
  EngineOptions options = clipping();
  options.non_finite = NonFiniteGradients::pass;
  for (const auto& error :
       errors_of(options, [](Engine&engine, Model&model, int rank) { backward_of(engine, model, rank, 0, true); }))
    EXPECT_EQ(error, "");
}

TEST(IsFinite, FindsWhatIsNoNumberWhereverItIs) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t n : {1, 7, 33, 1000}) {
      const at::Tensor values = at::randn({n}).to(type);
      EXPECT_TRUE(is_finite(values));
      for (const double wrong : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
        for (const int64_t at : {int64_t{0}, n / 2, n - 1}) {
          const at::Tensor spoilt = values.clone();
          spoilt[at] = wrong;
          EXPECT_FALSE(is_finite(spoilt));
        }
      }
      EXPECT_TRUE(is_finite(at::full({n}, type == at::kHalf ? 65504.0 : 3e38, type)));
    }
  }
  EXPECT_TRUE(is_finite(at::Tensor()));
  EXPECT_TRUE(is_finite(at::zeros({0})));
}

}  // namespace
}  // namespace sherd::testing
