#include "sherd/recompute/recompute.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/torch/versions.h"

namespace sherd::detail {
namespace {

using torch::autograd::Edge;
using torch::autograd::variable_list;

bool is_differentiable(const at::Tensor& tensor) {
  return tensor.defined() && (tensor.is_floating_point() || tensor.is_complex());
}

std::vector<at::Device> devices_of(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Device> devices;
  for (const auto& tensor : tensors) {
    if (!tensor.defined() || tensor.is_cpu()) continue;
    if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end()) devices.push_back(tensor.device());
  }
  return devices;
}

}  // namespace

struct RecomputeState {
  RecomputedCall call;
  std::vector<uint32_t> versions;  // of the inputs; those of inference tensors are not counted
  std::vector<at::Device> devices;
  RandomState random;
};

namespace {

uint32_t version_of(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_inference() ? tensor.unsafeGetTensorImpl()->version_counter().current_version()
                                                    : 0;
}

// Runs the call again with gradients, and a backward through what that made. Parameters and everything else that the
// call reaches outside its arguments get their gradients there, as in any backward.
struct RecomputeNode : torch::autograd::Node {
  std::string name() const override { return "sherd::Recompute"; }

  variable_list apply(variable_list&& gradients) override {
    if (!state) fault("recompute", "got a second backward through a recomputed call, expected one; try forward again");
    if (at::GradMode::is_enabled())
      fault("recompute", "got backward with create_graph, expected one without; try recompute: none");
    if (!torch::autograd::Engine::get_default_engine().is_checkpoint_valid())
      fault("recompute",
            "got torch::autograd::grad or backward with given inputs, expected a backward that accumulates "
            "into .grad; try loss.backward()");
    const auto& inputs = state->call.inputs;
    for (size_t i = 0; i < inputs.size(); ++i)
      if (version_of(inputs[i]) != state->versions[i])
        fault("recompute",
              "got argument {} of a recomputed call changed in place since its forward (version {}, expected {}); try "
              "to clone it before it is changed",
              i, version_of(inputs[i]), state->versions[i]);
    Detached detached;
    for (const auto& input : inputs)
      detached[input.unsafeGetTensorImpl()] = input.detach().requires_grad_(input.requires_grad());
    backward_through(run_again(detached), gradients);
    variable_list result;
    for (const auto& input : inputs) result.push_back(detached[input.unsafeGetTensorImpl()].grad());
    return result;
  }

  void release_variables() override { state.reset(); }

  variable_list run_again(const Detached& detached) const {
    const RandomScope random(state->random, state->devices);
    const at::AutoGradMode with_gradients(true);
    return state->call.run(detached);
  }

  void backward_through(const variable_list& results, const variable_list& gradients) const {
    SHERD_CHECK(results.size() == output_of_result.size());
    torch::autograd::edge_list roots;
    variable_list root_gradients;
    for (size_t i = 0; i < results.size(); ++i) {
      if (output_of_result[i] < 0 || !results[i].defined() || !results[i].requires_grad()) continue;
      const auto& gradient = gradients[static_cast<size_t>(output_of_result[i])];
      if (!gradient.defined()) continue;
      roots.push_back(torch::autograd::impl::gradient_edge(results[i]));
      root_gradients.push_back(gradient);
    }
    if (roots.empty()) return;
    torch::autograd::Engine::get_default_engine().execute(roots, root_gradients, /*keep_graph=*/false,
                                                          /*create_graph=*/false, /*accumulate_grad=*/true);
  }

  std::unique_ptr<RecomputeState> state;  // null once backward is over
  std::vector<int64_t> output_of_result;  // -1 for results that are not differentiable
};

}  // namespace

RecomputeScope::RecomputeScope(RecomputedCall call) : state_(std::make_unique<RecomputeState>()) {
  state_->call = std::move(call);
  auto& inputs = state_->call.inputs;
  // A tensor that is there twice counts once.
  std::vector<at::Tensor> once;
  for (const auto& input : inputs)
    if (input.defined() && std::none_of(once.begin(), once.end(), [&](const auto& t) { return t.is_same(input); }))
      once.push_back(input);
  inputs = std::move(once);
  for (const auto& input : inputs) state_->versions.push_back(version_of(input));
  state_->devices = devices_of(inputs);
  state_->random = RandomState::now(state_->devices);
}

RecomputeScope::RecomputeScope(RecomputeScope&&) noexcept = default;
RecomputeScope::~RecomputeScope() = default;

std::vector<at::Tensor> RecomputeScope::attach(const std::vector<at::Tensor>& results) {
  const auto node = make_node<RecomputeNode>();
  for (const auto& input : state_->call.inputs) node->add_next_edge(torch::autograd::impl::gradient_edge(input));
  node->state = std::move(state_);
  std::vector<at::Tensor> attached;
  for (const auto& result : results) {
    if (!is_differentiable(result)) {
      node->output_of_result.push_back(-1);
      attached.push_back(result);
      continue;
    }
    // A tensor of its own: the result may be an argument, or there twice.
    attached.push_back(result.detach());
    node->output_of_result.push_back(static_cast<int64_t>(node->num_inputs()));
    torch::autograd::set_history(attached.back(), node);
  }
  return attached;
}

}  // namespace sherd::detail
