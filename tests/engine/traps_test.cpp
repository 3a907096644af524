// The traps of sharding under autograd: each scenario runs on a sharded model and on the plain one, and has to give the
// same bits, or has to fail with an error that says why.
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "sherd/base/error.h"
#include "sherd/engine/engine.h"
#include "sherd/shard/reduction.h"
#include "tests/shard/toy_model.h"
#include "tests/support/engine_options.h"
#include "tests/support/ranks.h"

namespace sherd::testing {
namespace {

struct Case {
  Kind kind;
  int ranks;
  std::string strategy;
};

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return fmt::format("{}_{}_{}", name_of(info.param.kind), info.param.ranks, info.param.strategy);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    all.push_back({Kind::threads, 1, strategy});
    for (const Kind kind : {Kind::threads, Kind::host, Kind::gloo}) all.push_back({kind, 2, strategy});
    all.push_back({Kind::threads, 3, strategy});
    all.push_back({Kind::host, 3, strategy});
  }
  return all;
}

at::Tensor input_of(int rank, at::Device device = at::kCPU) {
  at::Tensor x = at::empty({5, 6});
  float* data = x.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) data[i] = std::sin(static_cast<float>(i * (rank + 2)));
  return x.to(device);
}

/// What a scenario needs of either side.
struct Plain {
  template <class F>
  auto forward(F&& f) {
    return f();
  }
  void backward(const at::Tensor& loss) { loss.backward(); }
};

template <class Block>
using Sharded = ModelImpl<UnitModule<Block>>;

/// Gradients of the plain model, each rank's input apart, summed in the canonical order.
template <class Block, class Scenario>
Values reference_gradients(const Values& start, int ranks, at::Device device, Scenario scenario) {
  at::set_num_threads(1);  // like the ranks: layer norm's gradients depend on the number of threads
  std::vector<Values> each;
  for (int r = 0; r < ranks; ++r) {
    ModelImpl<Block> model;
    load(model, start);
    model.to(device);
    Plain plain;
    scenario(plain, model, input_of(r, device));
    Values gradients;
    for (const auto& item : model.named_parameters())
      gradients[item.key()] = item.value().grad().defined() ? item.value().grad() : at::zeros_like(item.value());
    each.push_back(std::move(gradients));
  }
  Values sums;
  for (const auto& [name, first] : each[0]) {
    std::vector<at::Tensor> sources;
    for (const auto& one : each) sources.push_back(one.at(name).contiguous().view(-1));
    sums[name] = at::empty_like(sources[0]);
    canonical_sum(sources, sums[name], Round::first);
  }
  return sums;
}

EngineOptions options_of(const Case& c) {
  EngineOptions options;
  options.strategy = c.strategy;
  return options;
}

void expect_gradients(Engine& engine, const Values& expected) {
  for (const auto& shard : engine.gradient_shards()) {
    const at::Tensor rows =
        expected.at(shard.fqn).narrow(0, shard.rows.first * shard.row_elements, shard.values.numel());
    EXPECT_TRUE(at::equal(shard.values, rows)) << shard.fqn << " on rank " << engine.transport().rank();
  }
}

template <class Block, class Scenario>
void compare(const Case& c, Scenario scenario) {
  for (const at::Device device : test_devices()) {
    if (c.kind == Kind::host && c.ranks > 1 && !device.is_cpu()) continue;
    ModelImpl<Block> original;
    const Values start = values_of(original);
    const Values expected = reference_gradients<Block>(start, c.ranks, device, scenario);
    run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
      auto model = std::make_shared<Sharded<Block>>();
      model->to(device);
      EngineOptions options = options_of(c);
      options.device = device;
      Engine engine(model, transport, options, source_of(start));
      scenario(engine, *model, input_of(transport->rank(), device));
      expect_gradients(engine, expected);
    });
  }
}

class Traps : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(All, Traps, ::testing::ValuesIn(cases()), case_name);

TEST_P(Traps, OneForwardOneBackward) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    engine.backward(engine.forward([&] { return model.forward(x).sum(); }));
  });
}

TEST_P(Traps, InPlaceOnInputAndOutputOfAUnit) {
  compare<InPlaceBlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    engine.backward(engine.forward([&] {
      at::Tensor y = model.forward(x);
      y = model.blocks[0]->forward(y);
      y.mul_(3);  // in place on a view that a unit returned
      return y.sum();
    }));
  });
}

TEST_P(Traps, TwoForwardsOneBackward) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    const at::Tensor first = engine.forward([&] { return model.forward(x).sum(); });
    const at::Tensor second = engine.forward([&] { return model.forward(2 * x).pow(2).sum(); });
    engine.backward(first + second);
  });
}

TEST_P(Traps, OneUnitUsedTwiceInAForward) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    engine.backward(engine.forward([&] {
      return model.blocks[1]->forward(model.blocks[0]->forward(model.blocks[1]->forward(model.forward(x)))).sum();
    }));
  });
}

TEST_P(Traps, ForwardWithoutGradientsInBetween) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    const at::Tensor loss = engine.forward([&] { return model.forward(x).sum(); });
    {
      const at::NoGradGuard no_grad;
      engine.forward([&] { return model.forward(x).sum(); });
    }
    engine.backward(loss);
  });
}

TEST_P(Traps, PartOfTheModelRuns) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    engine.backward(engine.forward([&] { return model.blocks[2]->forward(x).sum(); }));
  });
}

/// Re-entrant recompute: forward keeps only its input, backward runs it again with gradients.
struct Recompute : torch::autograd::Function<Recompute> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            std::function<at::Tensor(at::Tensor)> run) {
    context->saved_data["x"] = x.detach();
    context->saved_data["run"] =
        torch::IValue(static_cast<int64_t>(reinterpret_cast<intptr_t>(new std::function<at::Tensor(at::Tensor)>(run))));
    const at::NoGradGuard no_grad;
    return run(x.detach());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const std::unique_ptr<std::function<at::Tensor(at::Tensor)>> run(
        reinterpret_cast<std::function<at::Tensor(at::Tensor)>*>(context->saved_data["run"].toInt()));
    const at::AutoGradMode with_gradients(true);
    at::Tensor x = context->saved_data["x"].toTensor().detach();
    x.set_requires_grad(true);
    const at::Tensor y = (*run)(x);
    torch::autograd::backward({y}, {gradients[0]});
    return {x.grad(), at::Tensor()};
  }
};

TEST_P(Traps, RecomputeAroundUnits) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    engine.backward(engine.forward([&] {
      at::Tensor h = at::linear(x, model.entry);
      for (const auto& block : model.blocks)
        h = Recompute::apply(h,
                             std::function<at::Tensor(at::Tensor)>([&](at::Tensor in) { return block->forward(in); }));
      return h.sum();
    }));
  });
}

TEST_P(Traps, NestedRecompute) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    using Run = std::function<at::Tensor(at::Tensor)>;
    engine.backward(engine.forward([&] {
      const at::Tensor h = at::linear(x, model.entry);
      const Run inner = [&](at::Tensor in) { return model.blocks[1]->forward(in); };
      const Run outer = [&](at::Tensor in) {
        return model.blocks[2]->forward(Recompute::apply(model.blocks[0]->forward(in), inner));
      };
      return Recompute::apply(h, outer).sum();
    }));
  });
}

/// The identity, whose backward throws.
struct Bomb : torch::autograd::Function<Bomb> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) { return x.clone(); }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
    throw std::runtime_error("boom");
  }
};

TEST_P(Traps, ExceptionInBackwardLosesOnlyThisStep) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    const auto bad = [&] {
      at::Tensor h = Bomb::apply(model.blocks[0]->forward(at::linear(x, model.entry)));
      return model.blocks[2]->forward(model.blocks[1]->forward(h)).sum();
    };
    // A slower rank may hear of the others' exception while it is still in forward.
    EXPECT_THROW(engine.backward(engine.forward(bad)), std::exception);
    for (const auto& parameter : model.parameters()) parameter.mutable_grad().reset();
    engine.backward(engine.forward([&] { return model.forward(x).sum(); }));
  });
}

TEST_P(Traps, ExceptionInForwardLosesNothing) {
  compare<BlockImpl>(GetParam(), [](auto& engine, auto& model, const at::Tensor& x) {
    EXPECT_THROW(engine.forward([&]() -> at::Tensor { return model.blocks[0]->forward(x.narrow(1, 0, 2)); }),
                 std::exception);
    engine.backward(engine.forward([&] { return model.forward(x).sum(); }));
  });
}

TEST_P(Traps, StaleBackwardThrows) {
  const Case& c = GetParam();
  run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
    ModelImpl<BlockImpl> original;
    for (auto& p : original.parameters()) at::NoGradGuard(), p.detach().fill_(0.1);
    auto model = std::make_shared<Sharded<BlockImpl>>();
    Engine engine(model, transport, options_of(c), source_of(values_of(original)));
    const at::Tensor x = input_of(transport->rank());
    const auto run = [&] { return engine.forward([&] { return model->forward(x).sum(); }); };
    const at::Tensor old = run();
    engine.backward(run());
    engine.step();
    EXPECT_THROW(engine.backward(old), c10::Error);
    engine.backward(run());  // and training goes on
    engine.step();
  });
}

TEST_P(Traps, WriteToAParameterThrows) {
  const Case& c = GetParam();
  run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
    ModelImpl<BlockImpl> original;
    auto model = std::make_shared<Sharded<BlockImpl>>();
    Engine engine(model, transport, options_of(c), source_of(values_of(original)));
    engine.forward([&] {
      const at::NoGradGuard no_grad;
      EXPECT_THROW(model->entry.mul_(2), c10::Error);
      return at::zeros({1});
    });
  });
}

TEST(UseAfterReshard, NamesTheParameterAndItsUnit) {
  for (const Kind kind : {Kind::threads, Kind::host, Kind::gloo}) {
    run_ranks(2, kind, [&](std::shared_ptr<Transport> transport) {
      ModelImpl<BlockImpl> original;
      auto model = std::make_shared<Sharded<BlockImpl>>();
      Engine engine(model, transport, with_strategy("zero3"), source_of(values_of(original)));
      const at::Tensor x = input_of(0);
      engine.backward(engine.forward([&] { return model->forward(x).sum(); }));
      try {
        at::linear(x, model->blocks[1]->up);
        ADD_FAILURE() << "used a sharded parameter";
      } catch (const c10::Error& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("block1.up"), std::string::npos) << text;
        EXPECT_NE(text.find("'block1'"), std::string::npos) << text;
      }
    });
  }
}

}  // namespace
}  // namespace sherd::testing
