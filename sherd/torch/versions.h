// All that differs, in C++, between the versions of torch that sherd is built with (2.11 to 2.15). Whatever comes next
// belongs here too, with a word why.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace sherd {

/// A shared node of autograd's graph: std::shared_ptr until 2.12, then c10::intrusive_ptr.
using AutogradNode = decltype(torch::autograd::Edge::function);

/// A new node of the caller's own type, held as that type. deleteNode, found by its argument, is there only where it is needed:
/// it ends long graphs without recursion.
template <typename Node, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<AutogradNode, std::shared_ptr<torch::autograd::Node>>)
    return std::shared_ptr<Node>(new Node(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  else
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
}

}  // namespace sherd
