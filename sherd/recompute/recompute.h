// Activation checkpointing: a call whose intermediate results are dropped after forward and made again in backward.
//
// Between forward and backward only the arguments live. In backward the call runs once more, under the random state it
// first had, so its gradients have the same bits as without. The cost is one more forward of the call. (Chen et al.,
// "Training deep nets with sublinear memory cost", 2016.)
//
// The call must give the same results for the same arguments, must not change its arguments in place, and takes part
// in backward() only (not in torch::autograd::grad with given inputs, and not in second derivatives): errors otherwise.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sherd/recompute/random_state.h"
#include "sherd/recompute/tensors_in.h"

namespace sherd {

namespace detail {

using Detached = std::unordered_map<const c10::TensorImpl*, at::Tensor>;

/// One call as backward sees it.
struct RecomputedCall {
  std::vector<at::Tensor> inputs;  // the tensors among the arguments
  /// Runs the call again with each input replaced; returns its results' tensors.
  std::function<std::vector<at::Tensor>(const Detached& replacements)> run;
};

struct RecomputeState;

/// Notes what the call needs before it runs for the first time.
class RecomputeScope {
 public:
  explicit RecomputeScope(RecomputedCall call);
  RecomputeScope(RecomputeScope&&) noexcept;
  ~RecomputeScope();
  /// Makes the floating-point results, computed without gradients, results of a node that runs the call again. Returns
  /// what takes the place of each result.
  std::vector<at::Tensor> attach(const std::vector<at::Tensor>& results);

 private:
  std::unique_ptr<RecomputeState> state_;
};

}  // namespace detail

/// function(args...), recomputed in backward. `function` and copies of the arguments live until backward is over;
/// tensors are found as in tensors_in.h. Without grad mode it is a plain call.
template <class F, class... Args>
auto recompute(F function, Args&&... args) {
  using Result = std::invoke_result_t<F&, Args...>;
  if (!at::GradMode::is_enabled()) return std::invoke(function, std::forward<Args>(args)...);

  auto saved = std::make_shared<std::tuple<std::decay_t<Args>...>>(args...);
  const auto run = [function, saved](const detail::Detached& replacements) mutable {
    auto again = *saved;
    replace_tensors(again, [&](const at::Tensor& tensor) {
      const auto found = replacements.find(tensor.unsafeGetTensorImpl());
      return found == replacements.end() ? tensor : found->second;
    });
    return std::apply(
        [&](auto&... arguments) { return tensors_in(std::invoke(function, std::forward<Args>(arguments)...)); }, again);
  };
  detail::RecomputeScope scope({tensors_in(*saved), run});
  Result result = [&] {
    const at::NoGradGuard no_grad;
    return std::invoke(function, std::forward<Args>(args)...);
  }();
  const std::vector<at::Tensor> attached = scope.attach(tensors_in(result));
  size_t next = 0;
  replace_tensors(result, [&](const at::Tensor&) { return attached[next++]; });
  return result;
}

}  // namespace sherd
