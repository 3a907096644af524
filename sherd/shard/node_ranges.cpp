#include "sherd/shard/node_ranges.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <limits>
#include <memory_resource>
#include <unordered_map>

namespace sherd {
namespace {

// Forwards that no step follows (evaluation with gradients) leave ranges behind: so many are kept.
constexpr size_t kMost = 1 << 14;
constexpr uint64_t kNoNumber = std::numeric_limits<uint64_t>::max();  // of nodes that accumulate, and lead nowhere

}  // namespace

NodeMark next_node() { return {at::sequence_number::peek(), at::RecordFunction::currentThreadId()}; }

void NodeRanges::add(NodeMark first, std::function<void()> reached, const std::vector<AutogradNode>& hooked) {
  const NodeMark now = next_node();
  if (now.number == first.number || now.thread != first.thread) return;
  auto& [ranges, outer] = threads_[now.thread];
  if (ranges.size() >= kMost) {
    ranges.clear();
    outer.clear();
  }
  Range& range = ranges.emplace_back(Range{now.thread, first.number, now.number, std::move(reached)});
  range.hooked.reserve(hooked.size());
  for (const auto& node : hooked) range.hooked.push_back(node.get());
  while (!outer.empty() && outer.back()->first >= first.number) {
    outer.back()->around = &range;
    outer.pop_back();
    range.has_inner = true;
  }
  outer.push_back(&range);
}

NodeRanges::Range* NodeRanges::innermost(const torch::autograd::Node& node, Range* guess) {
  const uint64_t number = node.sequence_nr(), id = node.thread_id();
  if (guess != nullptr && !guess->has_inner && id == guess->thread && guess->first <= number && number < guess->last)
    return guess;
  const auto thread = threads_.find(id);
  if (thread == threads_.end()) return nullptr;
  auto& ranges = thread->second.ranges;
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), number,
                                      [](uint64_t wanted, const Range& range) { return wanted < range.last; });
  Range* found = after == ranges.end() ? nullptr : &*after;
  while (found != nullptr && found->first > number) found = found->around;
  return found;
}

// Into all ranges around the node that are not around where the backward comes from.
void NodeRanges::enter(torch::autograd::Node& node, Range* inside, const Range* from) {
  for (; inside != nullptr; inside = inside->around) {
    for (const Range* outer = from; outer != nullptr; outer = outer->around)
      if (outer == inside) return;
    if (std::find(inside->hooked.begin(), inside->hooked.end(), &node) != inside->hooked.end()) continue;
    before_node(node, inside->reached);
    inside->hooked.push_back(&node);
  }
}

void NodeRanges::hook_entries(const std::vector<AutogradNode>& roots) {
  std::pmr::monotonic_buffer_resource memory(64 * walked_ + 4096);
  std::pmr::unordered_map<torch::autograd::Node*, Range*> seen(walked_, &memory);
  std::pmr::vector<std::pair<torch::autograd::Node*, Range*>> left(&memory);
  const auto visit = [&](torch::autograd::Node* node, Range* from) {
    if (node->sequence_nr() == kNoNumber && node->next_edges().empty()) return;
    const auto [entry, is_new] = seen.try_emplace(node, nullptr);
    if (is_new) {
      entry->second = innermost(*node, from);
      left.emplace_back(node, entry->second);
    }
    if (entry->second != from) enter(*node, entry->second, from);
  };
  for (const auto& root : roots)
    if (root) visit(root.get(), nullptr);
  while (!left.empty()) {
    const auto [node, range] = left.back();
    left.pop_back();
    for (const auto& edge : node->next_edges())
      if (edge.function) visit(edge.function.get(), range);
  }
  walked_ = seen.size();
}

}  // namespace sherd
