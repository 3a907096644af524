#include "sherd/shard/node_ranges.h"

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace sherd {
namespace {

using Calls = std::vector<std::string>;

at::Tensor trained() { return at::ones({2, 3}).requires_grad_(); }

/// Two blocks in a whole: each result by itself, as what leads in.
struct Graph {
  explicit Graph(NodeRanges& ranges) {
    const NodeMark whole = next_node();
    start = x * 2;
    const NodeMark first = next_node();
    left = start.exp();
    a = left * 3;
    ranges.add(first, note("first"), hooked_a ? output_nodes({a}) : std::vector<AutogradNode>());
    between = a + 1;
    const NodeMark second = next_node();
    b = between.sin() * 2;
    ranges.add(second, note("second"), {});
    end = b.sum();
    ranges.add(whole, note("whole"), {});
  }
  std::function<void()> note(std::string name) {
    return [this, name = std::move(name)] { calls.push_back(name); };
  }
  bool hooked_a = false;
  Calls calls;
  at::Tensor x = trained(), start, left, a, between, b, end;
};

void run(NodeRanges& ranges, const at::Tensor& root) {
  ranges.hook_entries(output_nodes({root}));
  root.sum().backward({}, true);
}

TEST(NodeRanges, AreCalledWhereABackwardComesIntoThem) {
  NodeRanges ranges;
  Graph graph(ranges);
  run(ranges, graph.end);
  EXPECT_EQ(graph.calls, (Calls{"whole", "second", "first"}));
}

TEST(NodeRanges, OnceANodeHoweverOftenItsGraphIsRun) {
  NodeRanges ranges;
  Graph graph(ranges);
  for (int round = 1; round <= 3; ++round) {
    graph.calls.clear();
    run(ranges, graph.end);
    EXPECT_EQ(graph.calls, (Calls{"whole", "second", "first"})) << round;
  }
}

TEST(NodeRanges, BySideDoorsToo) {
  NodeRanges ranges;
  Graph graph(ranges);
  const at::Tensor loss = graph.left * 5;
  run(ranges, loss);
  ASSERT_EQ(graph.calls.size(), 2u);  // into both at once
  EXPECT_EQ(std::set<std::string>(graph.calls.begin(), graph.calls.end()), (std::set<std::string>{"first", "whole"}));
}

TEST(NodeRanges, ByEachOfSeveralDoors) {
  NodeRanges ranges;
  Graph graph(ranges);
  run(ranges, graph.left.sum() + graph.end + graph.a.sum());
  EXPECT_EQ(std::count(graph.calls.begin(), graph.calls.end(), "first"), 2);   // a, and what is left in it
  EXPECT_EQ(std::count(graph.calls.begin(), graph.calls.end(), "second"), 1);  // its result
}

TEST(NodeRanges, WhatIsHookedAlreadyIsNotHookedAgain) {
  NodeRanges ranges;
  Calls calls;
  const at::Tensor x = trained();
  const NodeMark first = next_node();
  const at::Tensor y = (x * 2).exp();
  ranges.add(
      first, [&] { calls.push_back("range"); }, output_nodes({y}));
  run(ranges, y * 2);
  EXPECT_TRUE(calls.empty());
}

TEST(NodeRanges, AnEmptyRangeIsNone) {
  NodeRanges ranges;
  ranges.add(next_node(), [] {}, {});
  EXPECT_TRUE(ranges.empty());
}

TEST(NodeRanges, ForgottenOnesAreCalledNoMore) {
  NodeRanges ranges;
  Graph graph(ranges);
  ranges.clear();
  EXPECT_TRUE(ranges.empty());
  run(ranges, graph.end);
  EXPECT_TRUE(graph.calls.empty());
}

// Each thread numbers its nodes from 0.
TEST(NodeRanges, OfOneThreadAreNotThoseOfAnother) {
  NodeRanges ranges;
  Calls calls;
  at::Tensor there;
  const at::Tensor x = trained();
  std::thread([&] {
    const NodeMark first = next_node();
    there = (x * 2).exp();
    ranges.add(first, [&] { calls.push_back("there"); }, {});
  }).join();
  const NodeMark first = next_node();
  const at::Tensor here = (x * 3).exp();
  ranges.add(first, [&] { calls.push_back("here"); }, {});
  run(ranges, here * 1);
  EXPECT_EQ(calls, Calls{"here"});
  run(ranges, there * 1);
  EXPECT_EQ(calls, (Calls{"here", "there"}));
}

}  // namespace
}  // namespace sherd
