// Models of every shape: sharded, they train to the bits of the plain model.
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/lstm.h>
#include <ATen/ops/tanh.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

class ModelShapes : public ::testing::TestWithParam<RankCase> {};
INSTANTIATE_TEST_SUITE_P(All, ModelShapes, ::testing::ValuesIn(training_cases()), rank_case_name);

const auto run_toy = [](auto& model, int rank, int step) { return model.forward(training_input(rank, step)).sum(); };

template <class Block, class Prepare>
void expect_same(const RankCase& c, const EngineOptions& options, Prepare prepare) {
  const auto plain = [&] {
    const auto model = std::make_shared<ModelImpl<Block>>();
    prepare(*model);
    return model;
  };
  const auto sharded = [&] {
    const auto model = std::make_shared<ModelImpl<UnitModule<Block>>>();
    prepare(*model);
    return model;
  };
  expect_same_training(c, options, plain, sharded, run_toy);
}

const auto leave = [](auto&) {};

std::vector<EngineOptions> ways() {
  std::vector<EngineOptions> all;
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) all.push_back(clipping(strategy));
  all.push_back(clipping());
  all.back().recompute = {1};
  all.push_back(clipping("zero2"));
  all.back().recompute = {2};
  all.push_back(clipping());
  all.back().persistent_below = 250;  // bytes: some groups of each model
  all.push_back(clipping());
  all.back().reshard_after_forward = ReshardPolicy::never;
  return all;
}

TEST_P(ModelShapes, TheToyModelItself) {
  for (const auto& options : ways()) expect_same<BlockImpl>(GetParam(), options, leave);
}

TEST_P(ModelShapes, FrozenParameters) {
  const auto freeze = [](auto& model) {
    model.entry.requires_grad_(false);
    for (const auto& block : model.blocks) block->up.requires_grad_(false);  // as under LoRA
    for (auto& parameter : model.blocks[1]->parameters()) parameter.requires_grad_(false);
  };
  for (const auto& options : ways()) expect_same<BlockImpl>(GetParam(), options, freeze);
}

TEST(ModelShapes, ParametersThatAreFrozenLaterAreNamed) {
  const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
  model->blocks[1]->up.requires_grad_(false);
  const Values start = values_of(*model);
  Engine engine(model, solo_transport(), {}, source_of(start));
  for (at::Tensor* changed : {&model->entry, &model->blocks[1]->up}) {
    changed->requires_grad_(!changed->requires_grad());
    try {
      engine.step();
      ADD_FAILURE() << "made a step";
    } catch (const ConfigError& error) {
      const std::string name =
          changed == &model->entry ? "'entry', which was trainable" : "'block1.up', which was frozen";
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
    changed->requires_grad_(!changed->requires_grad());
  }
  engine.step();
}

TEST_P(ModelShapes, FrozenBeginning) {  // nothing before block2 needs gradients, inputs of units neither
  const auto freeze = [](auto& model) {
    for (auto& parameter : model.parameters()) parameter.requires_grad_(false);
    for (auto& parameter : model.blocks[2]->parameters()) parameter.requires_grad_(true);
  };
  for (const auto& options : ways()) expect_same<BlockImpl>(GetParam(), options, freeze);
}

/// The block's matrices are bf16, its norm fp32.
struct MixedBlockImpl : BlockImpl {
  MixedBlockImpl(int64_t width, int64_t hidden) : BlockImpl(width, hidden) {
    const at::NoGradGuard no_grad;
    for (const char* name : {"up", "down"}) {
      at::Tensor& parameter = parameters_[name];
      parameter.set_data(parameter.to(at::kBFloat16));
    }
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor normed = at::layer_norm(x, {x.size(-1)}, norm, bias).to(at::kBFloat16);
    return x + at::linear(at::gelu(at::linear(normed, up)), down).to(at::kFloat);
  }
};

TEST_P(ModelShapes, MixedTypesInAUnit) {
  for (const auto& options : ways()) expect_same<MixedBlockImpl>(GetParam(), options, leave);
}

/// Two units that share a matrix.
template <class Block>
struct TiedModel : torch::nn::Module {
  TiedModel() {
    first = register_module("first", std::make_shared<Block>(6, 10));
    second = register_module("second", std::make_shared<Block>(6, 10));
    second->up = second->parameters_shared(first->up);
  }
  at::Tensor forward(const at::Tensor& x) { return second->forward(first->forward(x)); }
  std::shared_ptr<Block> first, second;
};

struct TiedBlockImpl : BlockImpl {
  using BlockImpl::BlockImpl;
  at::Tensor parameters_shared(const at::Tensor& other) { return parameters_["up"] = other; }
  at::Tensor forward(const at::Tensor& x) { return BlockImpl::forward(x); }
};

TEST_P(ModelShapes, ParametersTiedAcrossUnits) {
  for (const auto& options : ways())
    expect_same_training(
        GetParam(), options, [] { return std::make_shared<TiedModel<TiedBlockImpl>>(); },
        [] { return std::make_shared<TiedModel<UnitModule<TiedBlockImpl>>>(); }, run_toy);
}

/// A unit with units in it, a parameter of its own before and after them.
template <class Block>
struct StageImpl : torch::nn::Module {
  StageImpl() {
    before = register_parameter("before", 0.5 * at::randn({6, 6}));
    after = register_parameter("after", 0.5 * at::randn({6, 6}));
    inner = register_module("inner", std::make_shared<Block>(6, 10));
    other = register_module("other", std::make_shared<Block>(6, 7));
  }
  at::Tensor forward(const at::Tensor& x) {
    return at::linear(other->forward(inner->forward(at::linear(x, before))), after).tanh();
  }
  at::Tensor before, after;
  std::shared_ptr<Block> inner, other;
};

template <class Stage>
struct StagedModel : torch::nn::Module {
  StagedModel() {
    for (int i = 0; i < 2; ++i)
      stages.push_back(register_module("stage" + std::to_string(i), std::make_shared<Stage>()));
  }
  at::Tensor forward(at::Tensor x) {
    for (const auto& stage : stages) x = x + stage->forward(x);
    return x;
  }
  std::vector<std::shared_ptr<Stage>> stages;
};

TEST_P(ModelShapes, NestedUnits) {
  for (const auto& options : ways())
    expect_same_training(
        GetParam(), options, [] { return std::make_shared<StagedModel<StageImpl<BlockImpl>>>(); },
        [] { return std::make_shared<StagedModel<UnitModule<StageImpl<UnitModule<BlockImpl>>>>>(); }, run_toy);
}

TEST_P(ModelShapes, RecomputeAroundUnits) {  // the user's own, outside of units and inside
  const auto loss = [](auto& model, int rank, int step) {
    at::Tensor x = training_input(rank, step);
    for (const auto& stage : model.stages)
      x = x + recompute([&](const at::Tensor& in) { return stage->forward(in); }, x);
    return x.sum();
  };
  for (const auto& options : ways())
    expect_same_training(
        GetParam(), options, [] { return std::make_shared<StagedModel<StageImpl<BlockImpl>>>(); },
        [] { return std::make_shared<StagedModel<UnitModule<StageImpl<UnitModule<BlockImpl>>>>>(); }, loss);
}

TEST_P(ModelShapes, UnitsChosenByAPolicy) {
  EngineOptions options = clipping();
  options.units = units_of_at_least(150);  // the stages, and of the blocks only `inner`
  expect_same_training(
      GetParam(), options, [] { return std::make_shared<StagedModel<StageImpl<BlockImpl>>>(); },
      [] { return std::make_shared<StagedModel<UnitModule<StageImpl<UnitModule<BlockImpl>>>>>(); }, run_toy);
  options.units = units_named({"*other"});
  expect_same_training(
      GetParam(), options, [] { return std::make_shared<StagedModel<StageImpl<BlockImpl>>>(); },
      [] { return std::make_shared<StagedModel<UnitModule<StageImpl<UnitModule<BlockImpl>>>>>(); }, run_toy);
}

/// Keeps its matrix at norm 1, in place, in every forward.
struct NormalisingBlockImpl : BlockImpl {
  using BlockImpl::BlockImpl;
  at::Tensor forward(const at::Tensor& x) {
    {
      const at::NoGradGuard no_grad;
      up.div_(up.norm());
    }
    return BlockImpl::forward(x);
  }
};

TEST_P(ModelShapes, UnitsThatWriteTheirParameters) {
  for (auto options : ways()) {
    if (options.recompute.every > 0) continue;  // a second forward would write a second time
    options.writing_units = {"block*"};
    // Each rank of the plain run would write again: all ranks' gradients are taken in one state of the parameters.
    const RankCase& c = GetParam();
    const auto loss = [](auto& model, int rank, int step) { return run_toy(model, rank, step); };
    const auto plain = std::make_shared<ModelImpl<NormalisingBlockImpl>>();
    {
      const at::NoGradGuard no_grad;
      for (const auto& block : plain->blocks)
        for (int i = 0; i < 8; ++i) block->up.div_(block->up.norm());  // until it changes no more
    }
    const Values start = values_of(*plain);
    run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
      const auto model = std::make_shared<ModelImpl<UnitModule<NormalisingBlockImpl>>>();
      Engine engine(model, transport, options, source_of(start));
      for (int step = 0; step < 2; ++step) {
        engine.backward(engine.forward([&] { return loss(*model, transport->rank(), step); }));
        engine.step();
      }
      // After the forward of the next step every block has norm 1 again, in the owners' rows.
      {
        const at::NoGradGuard no_grad;
        engine.forward([&] { return loss(*model, transport->rank(), 2); });
      }
      std::vector<double> squares(model->blocks.size(), 0);
      for (const auto& shard : engine.shards())
        for (size_t b = 0; b < squares.size(); ++b)
          if (shard.fqn == fmt::format("block{}.up", b))
            squares[b] = shard.values.to(at::kDouble).pow(2).sum().template item<double>();
      const std::vector<double> all = transport->exchange(squares);
      for (size_t b = 0; b < squares.size(); ++b) {
        double sum = 0;
        for (size_t r = 0; r < static_cast<size_t>(c.ranks); ++r) sum += all[r * squares.size() + b];
        EXPECT_NEAR(sum, 1, 1e-6) << "block" << b << " under " << options.strategy;
      }
    });
  }
}

/// torch's LSTM asks for its parameters as if to write to them.
struct LstmBlockImpl : torch::nn::Module {
  LstmBlockImpl(int64_t width, int64_t) {
    for (const char* name : {"input_weight", "hidden_weight"})
      weights.push_back(register_parameter(name, 0.3 * at::randn({4 * width, width})));
    for (const char* name : {"input_bias", "hidden_bias"})
      weights.push_back(register_parameter(name, at::zeros({4 * width})));
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor start = at::zeros({1, 1, x.size(-1)});
    const auto [out, hidden, cell] =
        at::lstm(x.unsqueeze(1), {start, start}, weights, /*has_biases=*/true, /*num_layers=*/1, /*dropout=*/0,
                 /*train=*/true, /*bidirectional=*/false, /*batch_first=*/false);
    return x + out.squeeze(1);
  }
  std::vector<at::Tensor> weights;
};

TEST_P(ModelShapes, LstmsAsWritingUnits) {
  for (auto options : ways()) {
    if (options.recompute.every > 0) continue;  // without gradients, as in a recomputed forward, it rounds differently
    options.writing_units = {"block*"};
    expect_same<LstmBlockImpl>(GetParam(), options, leave);
  }
}

TEST_P(ModelShapes, AWriteInAnOrdinaryUnitNamesIt) {
  const RankCase& c = GetParam();
  run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
    const ModelImpl<NormalisingBlockImpl> plain;
    const auto model = std::make_shared<ModelImpl<UnitModule<NormalisingBlockImpl>>>();
    Engine engine(model, transport, clipping(),
                  source_of(values_of(const_cast<ModelImpl<NormalisingBlockImpl>&>(plain))));
    try {
      engine.forward([&] { return run_toy(*model, 0, 0); });
      ADD_FAILURE() << "wrote to a shared parameter";
    } catch (const FaultError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("write in place to a parameter of unit 'block0'"), std::string::npos) << text;
      EXPECT_NE(text.find("'block0.up'"), std::string::npos) << text;
    }
  });
}

TEST_P(ModelShapes, GenerationBetweenSteps) {  // forwards without gradients, of growing length
  const RankCase& c = GetParam();
  for (const char* strategy : {"ddp", "zero3"}) {
    ModelImpl<BlockImpl> plain;
    const Values start = values_of(plain);
    const auto generate = [](auto& model) {
      const at::NoGradGuard no_grad;
      at::Tensor row = training_input(0, 9, {1, 6});
      for (int i = 0; i < 5; ++i) row = at::cat({row, model.forward(row).narrow(0, i, 1).tanh()});
      return row;
    };
    const at::Tensor before = generate(plain);
    train_plain(plain, clipping(strategy), c.ranks, 2, run_toy);
    const at::Tensor after = generate(plain);
    run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
      const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
      Engine engine(model, transport, clipping(strategy), source_of(start));
      EXPECT_TRUE(at::equal(engine.forward([&] { return generate(*model); }), before));
      for (int step = 0; step < 2; ++step) {
        engine.backward(engine.forward([&] { return run_toy(*model, transport->rank(), step); }));
        engine.step();
      }
      EXPECT_TRUE(at::equal(engine.forward([&] { return generate(*model); }), after));
    });
  }
}

TEST(Hsdp, OnEveryMeshTheBitsOfTheReference) {
  for (const auto& [ranks, replicate] : {std::pair{1, 1}, {2, 1}, {2, 2}, {3, 3}, {3, 1}, {4, 1}, {4, 2}, {4, 4}}) {
    for (const Kind kind : kKinds) {
      if (ranks == 1 && kind != Kind::threads) continue;
      EngineOptions options = clipping("hsdp");
      options.replicate = replicate;
      SCOPED_TRACE(fmt::format("{} replicas of {} ranks, {}", replicate, ranks, name_of(kind)));
      expect_same<BlockImpl>({kind, ranks}, options, leave);
      options.recompute = {1};
      expect_same<MixedBlockImpl>({kind, ranks}, options, leave);
    }
  }
}

TEST(Warnings, AboutAUnitThatHoldsMostOfTheModel) {
  run_ranks(2, Kind::threads, [](std::shared_ptr<Transport> transport) {
    const auto warnings = [&](int64_t count, int64_t hidden) {
      ModelImpl<BlockImpl> plain(64, hidden, count);
      const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(64, hidden, count);
      const Engine engine(model, transport, clipping(), source_of(values_of(plain)));
      return engine.warnings();
    };
    EXPECT_TRUE(warnings(2, 70000).empty());
    EXPECT_TRUE(warnings(1, 500).empty()) << "a toy";
    const std::vector<std::string> said = warnings(1, 70000);
    ASSERT_EQ(said.size(), 1u);
    EXPECT_NE(said[0].find("unit 'block0' holds"), std::string::npos) << said[0];
  });
}

}  // namespace
}  // namespace sherd::testing
