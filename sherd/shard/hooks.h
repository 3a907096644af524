// Callbacks on autograd's nodes, without identity functions around inputs or outputs (those break in-place operations).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "sherd/torch/versions.h"

namespace sherd {

/// Runs `call` each time before `node` computes gradients. The node owns the callback.
void before_node(torch::autograd::Node& node, std::function<void()> call);

/// Runs `call` each time after a gradient has been added to `parameter.grad()`. The callback lives as long as the
/// returned node, which the caller keeps.
AutogradNode after_accumulation(const at::Tensor& parameter, std::function<void()> call);

/// The nodes whose execution comes before every use, in backward, of what made `tensors`: their grad_fns, and for views
/// the grad_fns of their bases (an in-place operation on a view replaces its own grad_fn). Without duplicates.
std::vector<AutogradNode> output_nodes(const std::vector<at::Tensor>& tensors);

/// One node for each tensor that needs a gradient: its producer, or for a leaf what accumulates its gradient. It runs
/// after all users of the tensor are done in backward. For a view the base's node, which even in-place operations do
/// not replace.
std::vector<AutogradNode> producer_nodes(const std::vector<at::Tensor>& tensors);

/// True inside backward, on the thread that runs it.
bool inside_backward();

/// Runs `call` at the end of the backward that is under way (of the innermost one, if they nest); `broken`, when an
/// exception has ended it before: not later than the exception leaves backward(). `broken` must not throw.
void at_end_of_backward(
    std::function<void()> call, std::function<void()> broken = [] {});

}  // namespace sherd
