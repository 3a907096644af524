// Exceptions in the middle of a step: they reach all ranks, and training goes on from the last step.
#include <ATen/ops/linear.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

/// The identity, whose backward throws on command.
struct Mine : torch::autograd::Function<Mine> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) { return x.clone(); }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
    throw std::runtime_error("a mine in backward");
  }
};

enum class Place { forward, between_units, backward, before_step };

constexpr Place kPlaces[] = {Place::forward, Place::between_units, Place::backward, Place::before_step};

const auto toy_loss = [](auto& model, int rank, int step) { return model.forward(training_input(rank, step)).sum(); };

/// One step in which rank `bad` throws.
template <class Model>
void broken_step(Engine& engine, Model& model, Place place, bool bad) {
  const at::Tensor x = training_input(engine.transport().rank(), 77);
  const at::Tensor loss = engine.forward([&] {
    if (bad && place == Place::forward) throw std::runtime_error("a mine in forward");
    at::Tensor h = model.blocks[0]->forward(at::linear(x, model.entry));
    if (bad && place == Place::between_units) throw std::runtime_error("a mine between units");
    h = model.blocks[1]->forward(h);
    if (bad && place == Place::backward) h = Mine::apply(h);
    return model.blocks[2]->forward(h).sum();
  });
  engine.backward(loss);
  if (bad && place == Place::before_step) engine.transport().abort("a mine before the step");
  engine.step();
}

class Recovery : public ::testing::TestWithParam<RankCase> {};
INSTANTIATE_TEST_SUITE_P(All, Recovery, ::testing::ValuesIn(training_cases()), rank_case_name);

TEST_P(Recovery, AnExceptionOfOneRankReachesAllAndLosesOnlyItsStep) {
  const RankCase& c = GetParam();
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    const EngineOptions options = clipping(strategy);
    ModelImpl<BlockImpl> plain;
    const Values start = values_of(plain);
    const int steps = static_cast<int>(std::size(kPlaces)) + 1;
    const Values expected = train_plain(plain, options, c.ranks, steps, toy_loss);
    run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
      const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
      Engine engine(model, transport, options, source_of(start));
      int step = 0;
      for (const Place place : kPlaces) {
        SCOPED_TRACE(fmt::format("{} place {} rank {}", strategy, static_cast<int>(place), transport->rank()));
        engine.backward(engine.forward([&] { return toy_loss(*model, transport->rank(), step); }));
        engine.step();
        ++step;
        const bool bad = transport->rank() == c.ranks - 1;
        // Gloo's exchange may end on one rank and be broken off on another: there the step would be parted.
        if (bad && c.kind == Kind::gloo) std::this_thread::sleep_for(std::chrono::milliseconds(100));
        try {
          broken_step(engine, *model, place, bad);
          // Alone, aborting has nobody to tell.
          EXPECT_TRUE(c.ranks == 1 && place == Place::before_step) << "the exception reached no one";
        } catch (const std::exception& error) {
          EXPECT_NE(std::string(error.what()).find("a mine"), std::string::npos) << error.what();
        }
      }
      if (c.ranks == 1) return;  // its last broken step was a whole one
      engine.backward(engine.forward([&] { return toy_loss(*model, transport->rank(), step); }));
      engine.step();
      expect_rows(engine, expected);
    });
  }
}

TEST_P(Recovery, TheAccumulationWindowIsDropped) {
  const RankCase& c = GetParam();
  const EngineOptions options = clipping("zero2");
  ModelImpl<BlockImpl> plain;
  const Values start = values_of(plain);
  const Values expected = train_plain(plain, options, c.ranks, 1, toy_loss);
  run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
    const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
    Engine engine(model, transport, options, source_of(start));
    const auto window = [&] {
      engine.backward(engine.forward([&] { return toy_loss(*model, transport->rank(), 5); }));
      engine.backward(engine.forward([&] { return toy_loss(*model, transport->rank(), 6); }));
      broken_step(engine, *model, Place::backward, true);  // on all ranks, but a slower one may hear of it before
    };
    EXPECT_THROW(window(), std::exception);
    engine.backward(engine.forward([&] { return toy_loss(*model, transport->rank(), 0); }));
    engine.step();
    expect_rows(engine, expected);
  });
}

TEST_P(Recovery, ARankThatRunsAnotherUnitIsNamed) {
  const RankCase& c = GetParam();
  if (c.ranks == 1) return;
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    ModelImpl<BlockImpl> plain;
    const Values start = values_of(plain);
    run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
      const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
      Engine engine(model, transport, clipping(strategy), source_of(start));
      const at::Tensor x = training_input(transport->rank(), 0);
      try {
        engine.backward(engine.forward([&] {
          const at::Tensor h = model->blocks[0]->forward(at::linear(x, model->entry));
          return model->blocks[transport->rank() == 1 ? 2 : 1]->forward(h).sum();
        }));
        engine.step();
        ADD_FAILURE() << "nobody noticed";
      } catch (const FaultError& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("block1"), std::string::npos) << text;
        EXPECT_NE(text.find("block2"), std::string::npos) << text;
      }
    });
  }
}

}  // namespace
}  // namespace sherd::testing
