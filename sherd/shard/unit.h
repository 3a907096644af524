// sherd::Unit<Block>: a module that is unsharded and resharded as one. A drop-in for torch::nn::ModuleHolder<Block>:
// constructed from Block's arguments, called like it, with its parameters under the same names.
//
//   struct BlockImpl : torch::nn::Module { BlockImpl(int64_t width); at::Tensor forward(at::Tensor x); };
//   sherd::Unit<BlockImpl> block(512);
//
// Until an engine has taken the model, a unit is just its block.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <utility>

#include "sherd/base/error.h"
#include "sherd/recompute/recompute.h"
#include "sherd/recompute/tensors_in.h"
#include "sherd/shard/unit_forward.h"
#include "sherd/shard/unit_state.h"

namespace sherd {

/// How the engine finds units among a model's modules (by dynamic_cast).
class UnitBase {
 public:
  virtual ~UnitBase() = default;
  void attach(std::shared_ptr<UnitState> state) { state_ = std::move(state); }

 protected:
  std::shared_ptr<UnitState> state_;
};

/// The block with the unit's work around its forward. Where Block::forward is virtual, this overrides it.
template <class Block>
class UnitImpl : public Block, public UnitBase {
 public:
  using Block::Block;

  /// For a forward that returns nothing: what it makes, it leaves in its arguments.
  template <class... Args>
  void run_in_place(Args&&... args) {
    if (state_ && state_->activations() == Activations::recompute)
      config_error("recompute", "got unit '{}', whose forward returns nothing, expected results; try recompute: none",
                   state_->name());
    ForwardScope scope(state_.get(), tensors_in(args...));
    try {
      Block::forward(std::forward<Args>(args)...);
      scope.finish({});
    } catch (const c10::Error& error) {
      explain_write(error, state_.get());
      throw;
    }
  }

  template <class... Args>
  auto run(Args&&... args) {
    ForwardScope scope(state_.get(), tensors_in(args...));
    try {
      auto result = forward_of_block(std::forward<Args>(args)...);
      scope.finish(tensors_in(result));
      return result;
    } catch (const c10::Error& error) {
      explain_write(error, state_.get());
      throw;
    }
  }

 private:
  template <class... Args>
  auto forward_of_block(Args&&... args) {
    if (!state_ || state_->activations() == Activations::keep) return Block::forward(std::forward<Args>(args)...);
    // The graph may outlive the model: the model owns the state, and this block as well.
    const auto call = [this, weak = std::weak_ptr(state_)](auto&&... arguments) {
      const auto alive = weak.lock();
      if (!alive)
        fault("recompute", "got backward through a model that is gone; try to keep the engine alive until then");
      return Block::forward(std::forward<decltype(arguments)>(arguments)...);
    };
    return recompute(call, std::forward<Args>(args)...);
  }
};

/// A unit as a module. Without `Signatures` it has the block's forward; a block whose forward is overloaded or a
/// template names those that the unit is to have, as function types: UnitModule<Block, at::Tensor(at::Tensor) const>.
template <class Block, class... Signatures>
using UnitModule = typename detail::ForwardsOf<Block, UnitImpl<Block>, Signatures...>::type;

template <class Block, class... Signatures>
class Unit : public torch::nn::ModuleHolder<UnitModule<Block, Signatures...>> {
 public:
  using torch::nn::ModuleHolder<UnitModule<Block, Signatures...>>::ModuleHolder;

  /// Calls forward; arguments that have defaults may be left out (unit->forward() takes all of them).
  template <class... Args>
  auto operator()(Args&&... args) {
    UnitModule<Block, Signatures...>& unit = *this->get();
    using BlockResult = decltype(unit.Block::forward(std::forward<Args>(args)...));
    if constexpr (requires { unit.forward(std::forward<Args>(args)...); }) {
      return unit.forward(std::forward<Args>(args)...);
    } else if constexpr (std::is_void_v<BlockResult>) {
      return unit.run_in_place(std::forward<Args>(args)...);
    } else {
      return unit.run(std::forward<Args>(args)...);
    }
  }
};

}  // namespace sherd
