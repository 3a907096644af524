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

#include "sherd/shard/tensors_in.h"
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

  template <class... Args>
  auto run(Args&&... args) {
    ForwardScope scope(state_.get(), tensors_in(args...));
    auto result = Block::forward(std::forward<Args>(args)...);
    scope.finish(tensors_in(result));
    return result;
  }
};

namespace detail {

// Deduces Block::forward's signature, so that the unit has the same one (AnyModule and Sequential look at it).
template <class Block, class Signature>
struct UnitOf;

template <class Block, class Owner, class Result, class... Args>
struct UnitOf<Block, Result (Owner::*)(Args...)> : UnitImpl<Block> {
  using UnitImpl<Block>::UnitImpl;
  Result forward(Args... args) { return this->run(std::forward<Args>(args)...); }
};

}  // namespace detail

template <class Block>
using UnitModule = detail::UnitOf<Block, decltype(&Block::forward)>;

template <class Block>
class Unit : public torch::nn::ModuleHolder<UnitModule<Block>> {
 public:
  using torch::nn::ModuleHolder<UnitModule<Block>>::ModuleHolder;
};

}  // namespace sherd
