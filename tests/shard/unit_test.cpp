#include "sherd/shard/unit.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>

#include "sherd/shard/sharded_model.h"

namespace sherd {
namespace {

/// x * w, by value.
struct ScaleImpl : torch::nn::Module {
  explicit ScaleImpl(int64_t width = 3, double value = 2) {
    w = register_parameter("w", at::full({width}, value, at::kFloat));
  }
  at::Tensor forward(at::Tensor x) {
    if (x.dim() == 0) throw std::runtime_error("no rows");
    return x * w;
  }
  at::Tensor w;
};

/// Several arguments and results; takes the last argument over.
struct ManyImpl : ScaleImpl {
  using ScaleImpl::ScaleImpl;
  using Kept = std::vector<at::Tensor>;
  std::tuple<at::Tensor, std::optional<at::Tensor>, int64_t> forward(const at::Tensor& x,
                                                                     const std::optional<at::Tensor>& mask,
                                                                     int64_t times, Kept&& kept) {
    Kept mine = std::move(kept);
    at::Tensor y = x * w * times;
    if (mask) return {y, *mask * w, static_cast<int64_t>(mine.size())};
    return {y, std::nullopt, static_cast<int64_t>(mine.size())};
  }
};

struct Layer : torch::nn::Module {
  virtual at::Tensor forward(const at::Tensor& x) = 0;
};

struct SquareImpl : Layer {
  SquareImpl() { w = register_parameter("w", at::full({1}, 2.0f)); }
  at::Tensor forward(const at::Tensor& x) override { return x * x * w; }
  at::Tensor w;
};

/// forward comes from the base.
struct DerivedImpl : ScaleImpl {
  using ScaleImpl::ScaleImpl;
};

const at::Tensor kX = at::ones({2, 3});  // NOLINT: no exception that matters here

/// A model of `unit` alone, sharded over one rank: its parameters are armed outside of its forward.
struct Attached {
  explicit Attached(std::shared_ptr<torch::nn::Module> unit) {
    root->register_module("unit", std::move(unit));
    ShardOptions options;
    options.strategy = find_strategy("zero3");
    model.emplace(root, *transport, ledger, options);
    model->fill([](const RowRange& range, float* out) { std::fill_n(out, range.rows * range.row_elements, 5.0f); });
  }
  GroupState state() const { return model->groups().at(0)->state(); }
  std::shared_ptr<torch::nn::Module> root = std::make_shared<torch::nn::Module>();
  std::unique_ptr<Transport> transport = solo_transport();
  Ledger ledger;
  std::optional<ShardedModel> model;
};

TEST(Unit, IsADropInForModuleHolder) {
  Unit<ScaleImpl> by_default, unit(3, 4.0), empty(nullptr);
  EXPECT_TRUE(empty.is_empty());
  EXPECT_TRUE(at::equal(by_default(kX), kX * 2));
  EXPECT_TRUE(at::equal(unit(kX), kX * 4));
  EXPECT_TRUE(at::equal(unit->forward(kX), kX * 4));
  Unit<ScaleImpl> copy = unit;  // NOLINT: a holder is copied as a pointer is
  EXPECT_EQ(copy.ptr(), unit.ptr());
  const auto names = unit->named_parameters();
  ASSERT_EQ(names.size(), 1u);
  EXPECT_EQ(names[0].key(), "w");
  torch::nn::Module parent;
  const Unit<ScaleImpl> registered = parent.register_module("scale", unit);
  EXPECT_EQ(registered.ptr(), unit.ptr());
  EXPECT_TRUE(parent.named_parameters().contains("scale.w"));
}

TEST(Unit, UnattachedBehavesAsItsBlock) {
  Unit<ScaleImpl> unit;
  unit(kX).sum().backward();
  EXPECT_TRUE(at::equal(unit->w.grad(), at::full({3}, 2.0f)));
  EXPECT_THROW(unit(at::ones({})), std::runtime_error);
}

TEST(Unit, PassesManyArgumentsAndResults) {
  Unit<ManyImpl> unit(3, 3.0);
  for (const bool attached : {false, true}) {
    std::optional<Attached> model;
    if (attached) model.emplace(unit.ptr());
    const float w = attached ? 5 : 3;
    ManyImpl::Kept kept{kX, kX};
    const auto [y, mask, count] = unit->forward(kX, at::ones({3}), 7, std::move(kept));
    EXPECT_TRUE(at::equal(y, kX * w * 7));
    EXPECT_TRUE(at::equal(mask.value(), at::full({3}, w)));
    EXPECT_EQ(count, 2);
    EXPECT_FALSE(std::get<1>(unit->forward(kX, std::nullopt, 1, {})).has_value());
  }
}

TEST(Unit, InsideSequentialAndAnyModule) {
  Unit<ScaleImpl> first, second(3, 4.0);
  torch::nn::Sequential sequential(first, Unit<SquareImpl>(), second);
  EXPECT_TRUE(at::equal(sequential->forward(kX), kX * 2 * 2 * 2 * 4));
  torch::nn::AnyModule any(second);
  EXPECT_TRUE(at::equal(any.forward(kX), kX * 4));
  Attached model(sequential.ptr());
  EXPECT_EQ(model.model->groups().size(), 3u);
  EXPECT_TRUE(at::equal(sequential->forward(kX), kX * 5 * 5 * 5 * 5));
  EXPECT_TRUE(at::equal(any.forward(kX), kX * 5));
}

TEST(Unit, OverridesAVirtualForward) {
  Unit<SquareImpl> unit;
  const std::shared_ptr<Layer> layer = unit.ptr();
  EXPECT_TRUE(at::equal(layer->forward(2 * kX), 8 * kX));
  Attached model(unit.ptr());
  EXPECT_TRUE(at::equal(layer->forward(2 * kX), 20 * kX));  // past the unit it would throw: w is armed
  EXPECT_THROW(unit->SquareImpl::forward(kX), c10::Error);
}

TEST(Unit, TakesABlockThatInheritsItsForward) {
  Unit<DerivedImpl> unit;
  Attached model(unit.ptr());
  EXPECT_TRUE(at::equal(unit(kX), kX * 5));
}

TEST(Unit, GivesItsParametersUpAfterForwardAndAfterBackward) {
  Unit<ScaleImpl> unit;
  Attached model(unit.ptr());
  EXPECT_EQ(model.state(), GroupState::sharded);
  const at::Tensor x = at::ones({2, 3}).requires_grad_();
  const at::Tensor y = unit(x);
  EXPECT_EQ(model.state(), GroupState::sharded);
  y.sum().backward();
  EXPECT_EQ(model.state(), GroupState::sharded);
  EXPECT_TRUE(at::equal(x.grad(), at::full({2, 3}, 5.0f)));
  EXPECT_TRUE(at::equal(model.model->store().gradient(0).narrow(0, 0, 3), at::full({3}, 2.0f)));
}

TEST(Unit, AnExceptionInForwardLeavesItSharded) {
  Unit<ScaleImpl> unit;
  Attached model(unit.ptr());
  EXPECT_THROW(unit(at::ones({})), std::runtime_error);
  EXPECT_EQ(model.state(), GroupState::sharded);
  EXPECT_THROW(unit->w.clone(), c10::Error);
  EXPECT_TRUE(at::equal(unit(kX), kX * 5));
}

TEST(Unit, WithoutGradientsItGivesItsParametersUpAtOnce) {
  Unit<ScaleImpl> unit;
  Attached model(unit.ptr());
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(unit(kX), kX * 5));
  EXPECT_EQ(model.state(), GroupState::sharded);
}

}  // namespace
}  // namespace sherd
