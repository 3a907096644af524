#include "sherd/shard/hooks.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace sherd {
namespace {

using torch::autograd::variable_list;

struct PreHook : torch::autograd::FunctionPreHook {
  explicit PreHook(std::function<void()> function) : call(std::move(function)) {}
  variable_list operator()(const variable_list& gradients) override {
    call();
    return gradients;
  }
  std::function<void()> call;
};

struct PostHook : torch::autograd::FunctionPostHook {
  explicit PostHook(std::function<void()> function) : call(std::move(function)) {}
  variable_list operator()(const variable_list& outputs, const variable_list&) override {
    call();
    return outputs;
  }
  std::function<void()> call;
};

// What autograd still holds when a backward is over without having called it was ended by an exception.
class Ending {
 public:
  Ending(std::function<void()> call, std::function<void()> broken)
      : call_(std::move(call)), broken_(std::move(broken)) {}
  Ending(const Ending&) = delete;
  Ending& operator=(const Ending&) = delete;
  ~Ending() {
    if (!ended_) broken_();
  }
  void reached() {
    call_();
    ended_ = true;
  }

 private:
  std::function<void()> call_, broken_;
  bool ended_ = false;
};

void add_once(std::vector<AutogradNode>& nodes, const AutogradNode& node) {
  if (node && std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
}

AutogradNode producer(const at::TensorBase& tensor) { return tensor.grad_fn(); }

// A leaf's is what accumulates its gradient: not for our own parameters (they have a hook), whose nodes stay for ever
// and would collect callbacks.
AutogradNode receiver(const at::TensorBase& base) {
  const at::Tensor tensor(base);
  if (!tensor.requires_grad()) return {};
  const AutogradNode node = torch::autograd::impl::gradient_edge(tensor).function;
  return tensor.is_leaf() && !node->post_hooks().empty() ? AutogradNode() : node;
}

}  // namespace

void before_node(torch::autograd::Node& node, std::function<void()> call) {
  node.add_pre_hook(std::make_unique<PreHook>(std::move(call)));
}

AutogradNode after_accumulation(const at::Tensor& parameter, std::function<void()> call) {
  AutogradNode node = torch::autograd::impl::grad_accumulator(parameter);
  node->add_post_hook(std::make_unique<PostHook>(std::move(call)));
  return node;
}

std::vector<AutogradNode> output_nodes(const std::vector<at::Tensor>& tensors) {
  std::vector<AutogradNode> nodes;
  for (const auto& tensor : tensors) {
    if (!tensor.defined() || !tensor.requires_grad()) continue;
    add_once(nodes, producer(tensor));
    if (tensor.is_view()) add_once(nodes, producer(tensor._base()));
  }
  return nodes;
}

std::vector<AutogradNode> producer_nodes(const std::vector<at::Tensor>& tensors) {
  std::vector<AutogradNode> nodes;
  for (const auto& tensor : tensors) {
    if (!tensor.defined() || !tensor.requires_grad()) continue;
    const AutogradNode base = tensor.is_view() ? receiver(tensor._base()) : AutogradNode();
    add_once(nodes, base ? base : receiver(tensor));
  }
  return nodes;
}

bool inside_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

void at_end_of_backward(std::function<void()> call, std::function<void()> broken) {
  auto ending = std::make_shared<Ending>(std::move(call), std::move(broken));
  torch::autograd::Engine::get_default_engine().queue_callback([ending] { ending->reached(); });
}

}  // namespace sherd
