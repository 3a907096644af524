#include "sherd/shard/unit_forward.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>

#include "sherd/shard/module_values.h"
#include "sherd/shard/sharded_model.h"

namespace sherd {
namespace {

/// A parameter "w" of ones; sharded it becomes fives, and using it outside the unit throws.
struct FivesImpl : torch::nn::Module {
  FivesImpl() { w = register_parameter("w", at::ones({3})); }
  at::Tensor w;
};

/// The model of one unit, sharded over one rank, with its own values or fives.
struct Sharded {
  explicit Sharded(std::shared_ptr<torch::nn::Module> unit, std::optional<ParameterSource> source = {}) {
    root->register_module("unit", std::move(unit));
    ShardOptions options;
    options.strategy = find_strategy("zero3");
    const auto fives = [](const RowRange& range, float* out) {
      std::fill_n(out, range.rows * range.row_elements, 5.0f);
    };
    const ParameterSource values = source.value_or(fives);
    model.emplace(root, *transport, ledger, options);
    model->fill(values);
  }
  GroupState state() const { return model->groups().at(0)->state(); }
  std::shared_ptr<torch::nn::Module> root = std::make_shared<torch::nn::Module>();
  std::unique_ptr<Transport> transport = solo_transport();
  Ledger ledger;
  std::optional<ShardedModel> model;
};

const at::Tensor kIn = at::ones({2, 3});  // NOLINT: no exception that matters here

struct ConstImpl : FivesImpl {
  at::Tensor forward(const at::Tensor& x) const { return x * w; }
};
struct NoexceptImpl : FivesImpl {
  at::Tensor forward(at::Tensor x) noexcept { return x * w; }
};
struct ConstNoexceptImpl : FivesImpl {
  at::Tensor forward(at::Tensor x) const noexcept { return x * w; }
};

TEST(UnitForward, ConstAndNoexcept) {
  const Unit<ConstImpl> unit;
  const Sharded model(unit.ptr());
  const auto& constant = *unit;
  EXPECT_TRUE(at::equal(constant.forward(kIn), kIn * 5));
  Unit<NoexceptImpl> quiet;
  const Sharded quiet_model(quiet.ptr());
  EXPECT_TRUE(at::equal(quiet(kIn), kIn * 5));
  static_assert(!noexcept(quiet->forward(kIn)));  // a peer may be gone
  const Unit<ConstNoexceptImpl> both;
  const Sharded both_model(both.ptr());
  EXPECT_TRUE(at::equal(both->forward(kIn), kIn * 5));
}

struct AbstractImpl : FivesImpl {
  virtual at::Tensor forward(const at::Tensor& x) const noexcept = 0;
};
struct OverridingImpl : AbstractImpl {
  at::Tensor forward(const at::Tensor& x) const noexcept override { return x * w; }
};

TEST(UnitForward, OverridesAVirtualNoexceptOneByItsNamedSignature) {
  Unit<OverridingImpl, at::Tensor(const at::Tensor&) const noexcept> unit;
  const Sharded model(unit.ptr());
  const std::shared_ptr<const AbstractImpl> base = unit.ptr();
  EXPECT_TRUE(at::equal(base->forward(kIn), kIn * 5));
}

struct OverloadedImpl : FivesImpl {
  at::Tensor forward(at::Tensor x) { return x * w; }
  at::Tensor forward(at::Tensor x, at::Tensor y) { return x * w + y; }
  at::Tensor forward(at::Tensor x, int64_t times) const { return x * w * times; }
};

TEST(UnitForward, OverloadsAreNamed) {
  Unit<OverloadedImpl, at::Tensor(at::Tensor)> one;
  const Sharded model(one.ptr());
  EXPECT_TRUE(at::equal(one(kIn), kIn * 5));
  EXPECT_TRUE(at::equal(torch::nn::AnyModule(one).forward(kIn), kIn * 5));
  EXPECT_TRUE(at::equal(torch::nn::Sequential(one, one)->forward(kIn), kIn * 25));

  Unit<OverloadedImpl, at::Tensor(at::Tensor), at::Tensor(at::Tensor, at::Tensor),
       at::Tensor(at::Tensor, int64_t) const>
      all;
  const Sharded all_model(all.ptr());
  EXPECT_TRUE(at::equal(all(kIn), kIn * 5));
  EXPECT_TRUE(at::equal(all(kIn, kIn), kIn * 6));
  EXPECT_TRUE(at::equal(all->forward(kIn, int64_t{3}), kIn * 15));
  EXPECT_EQ(all_model.state(), GroupState::sharded);
}

/// Changes its arguments, and returns nothing.
struct VoidImpl : FivesImpl {
  void forward(at::Tensor x, std::vector<at::Tensor>& more, double times = 1) const {
    x.mul_(w * times);
    more.push_back(x * w);
  }
};

TEST(UnitForward, NothingReturnedAndArgumentsChangedInPlace) {
  Unit<VoidImpl> unit;
  const Sharded model(unit.ptr());
  for (const bool with_default : {true, false}) {
    const at::Tensor leaf = at::full({2, 3}, 3.0f).requires_grad_();
    const at::Tensor x = leaf * 1;
    std::vector<at::Tensor> more;
    if (with_default) {
      unit(x, more);
    } else {
      unit->forward(x, more, 1);
    }
    EXPECT_EQ(model.state(), GroupState::sharded);
    EXPECT_TRUE(at::equal(x, at::full({2, 3}, 15.0f)));
    // w is needed in backward, and nothing but x says so.
    x.sum().backward();
    EXPECT_TRUE(at::equal(leaf.grad(), at::full({2, 3}, 5.0f)));
    EXPECT_EQ(model.state(), GroupState::sharded);
  }
}

struct BothImpl : FivesImpl {
  at::Tensor forward(const at::Tensor& x) {
    x.mul_(w);
    return x.detach() + 1;
  }
};

TEST(UnitForward, AChangedArgumentIsAnOutputBesideTheResult) {
  Unit<BothImpl> unit;
  const Sharded model(unit.ptr());
  const at::Tensor leaf = at::full({2, 3}, 3.0f).requires_grad_();
  const at::Tensor x = leaf * 1;
  EXPECT_TRUE(at::equal(unit(x), at::full({2, 3}, 16.0f)));
  EXPECT_EQ(model.state(), GroupState::sharded);
  x.sum().backward();
  EXPECT_TRUE(at::equal(leaf.grad(), at::full({2, 3}, 5.0f)));
}

/// Defaults for a caller, and (FORWARD_HAS_DEFAULT_ARGS) for Sequential.
struct DefaultsImpl : FivesImpl {
  at::Tensor forward(at::Tensor x, double times = 2, std::optional<at::Tensor> more = {}) {
    const at::Tensor y = x * w * times;
    return more ? y + *more : y;
  }

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(2.0)}, {2, torch::nn::AnyValue(std::optional<at::Tensor>())})
};

TEST(UnitForward, ArgumentsWithDefaultsMayBeLeftOut) {
  Unit<DefaultsImpl> unit;
  EXPECT_TRUE(at::equal(unit(kIn), kIn * 2));
  const Sharded model(unit.ptr());
  EXPECT_TRUE(at::equal(unit(kIn), kIn * 10));
  EXPECT_TRUE(at::equal(unit(kIn, 3), kIn * 15));
  EXPECT_TRUE(at::equal(unit(kIn, 3, kIn), kIn * 16));
  EXPECT_TRUE(at::equal(unit->forward(kIn, 1, std::nullopt), kIn * 5));
  EXPECT_TRUE(at::equal(torch::nn::AnyModule(unit).forward(kIn), kIn * 10));
  EXPECT_TRUE(at::equal(torch::nn::Sequential(unit)->forward(kIn), kIn * 10));
  EXPECT_EQ(model.state(), GroupState::sharded);
}

TEST(UnitForward, TorchsOwnModules) {
  torch::manual_seed(1);
  const at::Tensor x = at::ones({4, 2, 3});
  Unit<torch::nn::LinearImpl> linear(3, 5);
  Unit<torch::nn::LSTMImpl> lstm(
      3, 6);  // a tuple in a tuple; a state that may be left out. (Sharded, oneDNN's LSTM asks to write its weights.)
  Unit<torch::nn::SequentialImpl, at::Tensor(at::Tensor)> sequence(torch::nn::Linear(3, 4), torch::nn::Linear(4, 2));
  const at::Tensor expected_linear = linear(x), expected_sequence = sequence(x);
  const auto [expected_lstm, state] = lstm(x);
  EXPECT_EQ(std::get<0>(lstm(x, state)).sizes(), expected_lstm.sizes());
  const auto all = std::make_shared<torch::nn::Module>();
  all->register_module("linear", linear);
  all->register_module("sequence", sequence);
  const Sharded model(all, [values = module_values(*all)](const RowRange& range, float* out) {
    values({range.fqn.substr(std::string("unit.").size()), range.first_row, range.rows, range.row_elements}, out);
  });
  EXPECT_EQ(model.model->groups().size(), 2U);
  EXPECT_TRUE(at::equal(linear(x), expected_linear));
  EXPECT_TRUE(at::equal(sequence(x), expected_sequence));
  EXPECT_EQ(model.state(), GroupState::sharded);
}

}  // namespace
}  // namespace sherd
