#include "sherd/shard/hooks.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

namespace sherd {
namespace {

using Nodes = std::vector<AutogradNode>;

at::Tensor leaf() { return at::ones({2, 3}).requires_grad_(); }
AutogradNode node_of(const at::Tensor& tensor) { return AutogradNode(tensor.grad_fn()); }

TEST(OutputNodes, AreTheGradFnsOnce) {
  const at::Tensor x = leaf(), a = x * 2, b = x * 3;
  EXPECT_EQ(output_nodes({a, b, a}), (Nodes{node_of(a), node_of(b)}));
}

TEST(OutputNodes, OfWhatNeedsNoGradientThereAreNone) {
  const at::Tensor x = leaf();
  EXPECT_TRUE(output_nodes({}).empty());
  EXPECT_TRUE(output_nodes({at::Tensor(), at::ones({2}), x, (x * 2).detach()}).empty());
}

TEST(OutputNodes, OfAViewAreItsOwnAndItsBases) {
  const at::Tensor base = leaf() * 2, view = base.view({3, 2});
  const AutogradNode before = node_of(base);
  EXPECT_EQ(output_nodes({view}), (Nodes{node_of(view), before}));
}

TEST(OutputNodes, StillRunBeforeUsesOfAViewThatIsWrittenInPlace) {
  const at::Tensor x = leaf(), base = x * 2, view = base.view({3, 2});
  int calls = 0;
  for (const auto& node : output_nodes({view})) before_node(*node, [&] { ++calls; });
  view.mul_(3);  // replaces the grad_fns of view and base
  view.sum().backward();
  EXPECT_GE(calls, 1);
  EXPECT_EQ(x.grad().sum().item<float>(), 36);
}

TEST(ProducerNodes, OfLeavesAreWhatAccumulatesTheirGradients) {
  EXPECT_TRUE(producer_nodes({at::Tensor(), at::ones({2})}).empty());
  const at::Tensor x = leaf(), view = x.view({6});
  const Nodes nodes = producer_nodes({x, view});
  ASSERT_EQ(nodes.size(), 1u);
  EXPECT_EQ(nodes[0], torch::autograd::impl::grad_accumulator(x));
}

TEST(ProducerNodes, OfOurOwnParametersThereAreNone) {
  const at::Tensor x = leaf();
  const AutogradNode kept = after_accumulation(x, [] {});
  EXPECT_TRUE(producer_nodes({x}).empty());
}

TEST(ProducerNodes, AreOneATensorAndOfViewsTheBases) {
  const at::Tensor x = leaf(), a = x * 2, view = a.view({6}), other = a.narrow(0, 0, 1);
  EXPECT_EQ(producer_nodes({a}), Nodes{node_of(a)});
  EXPECT_EQ(producer_nodes({view, other, a}), Nodes{node_of(a)});
}

TEST(ProducerNodes, RunAfterTheUsersOfTheTensor) {
  const at::Tensor x = leaf(), a = x * 2;
  std::vector<std::string> events;
  for (const auto& node : producer_nodes({a})) before_node(*node, [&] { events.emplace_back("producer"); });
  const at::Tensor b = a.exp(), c = a.sin();
  before_node(*b.grad_fn(), [&] { events.emplace_back("user"); });
  before_node(*c.grad_fn(), [&] { events.emplace_back("user"); });
  (b + c).sum().backward();
  EXPECT_EQ(events, (std::vector<std::string>{"user", "user", "producer"}));
}

TEST(BeforeNode, RunsInEachBackwardAndIsOwnedByTheNode) {
  const auto counted = std::make_shared<int>(0);
  {
    const at::Tensor x = leaf(), a = x * 2;
    before_node(*a.grad_fn(), [counted] { ++*counted; });
    const at::Tensor loss = a.sum();
    loss.backward({}, /*retain_graph=*/true);
    loss.backward();
    EXPECT_EQ(*counted, 2);
    EXPECT_EQ(x.grad().sum().item<float>(), 24);
  }
  EXPECT_EQ(counted.use_count(), 1);
}

TEST(AfterAccumulation, SeesTheWholeGradient) {
  const at::Tensor x = leaf();
  std::vector<float> seen;
  const AutogradNode keep = after_accumulation(x, [&] { seen.push_back(x.grad().sum().item<float>()); });
  (x * 2 + x * 3).sum().backward();
  EXPECT_EQ(seen, std::vector<float>{30});
  (x * 1).sum().backward();
  EXPECT_EQ(seen, (std::vector<float>{30, 36}));
}

TEST(AfterAccumulation, EndsWithTheReturnedNode) {
  const at::Tensor x = leaf();
  int calls = 0;
  after_accumulation(x, [&] { ++calls; }).reset();
  (x * 2).sum().backward();
  EXPECT_EQ(calls, 0);
}

/// Runs a backward inside its own backward.
struct Reentrant : torch::autograd::Function<Reentrant> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) { return x.clone(); }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    EXPECT_TRUE(inside_backward());
    const at::AutoGradMode with_gradients(true);
    std::vector<std::string> events;
    const at::Tensor y = leaf(), a = y * 2;
    before_node(*a.grad_fn(), [&] {
      EXPECT_TRUE(inside_backward());
      at_end_of_backward([&] { events.emplace_back("end of the inner"); });
      events.emplace_back("inner");
    });
    a.sum().backward();
    EXPECT_EQ(events, (std::vector<std::string>{"inner", "end of the inner"}));
    EXPECT_TRUE(inside_backward());
    return {gradients[0]};
  }
};

TEST(InsideBackward, IsTrueOnlyInside) {
  EXPECT_FALSE(inside_backward());
  const at::Tensor x = leaf(), a = x * 2;
  bool inside = false;
  before_node(*a.grad_fn(), [&] { inside = inside_backward(); });
  a.sum().backward();
  EXPECT_TRUE(inside);
  EXPECT_FALSE(inside_backward());
}

TEST(AtEndOfBackward, ComesAfterEveryGradient) {
  const at::Tensor x = leaf(), a = x * 2;
  float sum_at_end = -1;
  before_node(*a.grad_fn(), [&] { at_end_of_backward([&] { sum_at_end = x.grad().sum().item<float>(); }); });
  a.sum().backward();
  EXPECT_EQ(sum_at_end, 12);
  sum_at_end = -1;
  (x * 2).sum().backward();  // not in later ones
  EXPECT_EQ(sum_at_end, -1);
}

TEST(AtEndOfBackward, BelongsToTheInnermost) {
  const at::Tensor x = leaf();
  Reentrant::apply(x).sum().backward();
  EXPECT_FALSE(inside_backward());
}

}  // namespace
}  // namespace sherd
