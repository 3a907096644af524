// Which forward made which nodes of autograd's graph, and where a backward comes upon them.
//
// [Note: Side doors] The nodes behind a unit's outputs call for its parameters before they run. But a graph can also be
// reached by what a unit has left elsewhere: a loss on one of its modules, a cache, what a hook has kept, objects of
// classes that nobody looks into; and backward itself makes nodes when gradients are to be differentiated again. All
// these nodes were made while the unit ran, so their sequence numbers lie in a range of their own. Before a backward
// its graph is walked, and each node that leads from outside into a range calls for the unit.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "sherd/shard/hooks.h"

namespace sherd {

/// Where the next node of this thread comes in the order of all that it makes.
struct NodeMark {
  uint64_t number, thread;
};
NodeMark next_node();

class NodeRanges {
 public:
  /// Nodes made since `first`, by the same thread, call `reached` before a backward runs the first of them. `hooked`
  /// are those that do so already. Ranges that were begun within this one have been added before.
  void add(NodeMark first, std::function<void()> reached, const std::vector<AutogradNode>& hooked);
  /// Hooks on the nodes by which a backward from `roots` comes into ranges. Costs some 20 ns a node of the graph.
  void hook_entries(const std::vector<AutogradNode>& roots);
  void clear() { threads_.clear(); }
  bool empty() const { return threads_.empty(); }

 private:
  struct Range {
    uint64_t thread, first, last;
    std::function<void()> reached;
    Range* around = nullptr;  // the range that this one lies in
    bool has_inner = false;
    std::vector<const torch::autograd::Node*> hooked = {};
  };
  struct OfThread {
    std::deque<Range> ranges;   // in the order in which they ended
    std::vector<Range*> outer;  // of those that lie in no other yet
  };
  Range* innermost(const torch::autograd::Node& node, Range* guess);
  static void enter(torch::autograd::Node& node, Range* inside, const Range* from);

  std::map<uint64_t, OfThread> threads_;  // each numbers its nodes by itself
  size_t walked_ = 0;                     // nodes, the last time
};

}  // namespace sherd
