// All that differs, in C++, between the versions of torch that sherd is built with (2.11 to 2.15). Whatever comes next
// belongs here too, with a word why.
#pragma once

#include <c10/core/StorageImpl.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace sherd {

/// A shared node of autograd's graph: std::shared_ptr until 2.12, then c10::intrusive_ptr.
using AutogradNode = decltype(torch::autograd::Edge::function);

/// A new node of the caller's own type, held as that type. deleteNode, found by its argument, is there only where it is
/// needed: it ends long graphs without recursion.
template <typename Node, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<AutogradNode, std::shared_ptr<torch::autograd::Node>>)
    return std::shared_ptr<Node>(new Node(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  else
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
}

namespace detail {

// What an explicit instantiation may name, though it is private.
template <bool c10::StorageImpl::*flag>
struct ArmedFlag {
  friend bool& armed(c10::StorageImpl& storage) { return storage.*flag; }
};
template struct ArmedFlag<&c10::StorageImpl::throw_on_immutable_data_ptr_>;
bool& armed(c10::StorageImpl& storage);

}  // namespace detail

/// Points a storage to memory, and takes away the error that release_data_and_set_meta_custom_data_ptr_error_msg_ has
/// armed it with: 2.11 has no call for that.
template <typename Storage>
void point_storage(Storage& storage, at::DataPtr memory) {
  if constexpr (requires { storage.clear_data_ptr_access_error_msg_(); })
    storage.clear_data_ptr_access_error_msg_();
  else
    detail::armed(storage) = false;
  storage.set_data_ptr_noswap(std::move(memory));  // which looks at the flag again
}

}  // namespace sherd
