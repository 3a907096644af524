// The forwards of a unit: functions of the block's own signatures, so that a unit overrides what is virtual and fits
// into Sequential and AnyModule. Each calls run() of what it derives from.
#pragma once

#include <type_traits>
#include <utility>

namespace sherd::detail {

/// The signature of a member function, const kept. noexcept is not: waiting for peers may fail.
template <class Member>
struct SignatureOf;
template <class Owner, class Result, class... Args>
struct SignatureOf<Result (Owner::*)(Args...)> {
  using type = Result(Args...);
};
template <class Owner, class Result, class... Args>
struct SignatureOf<Result (Owner::*)(Args...) const> {
  using type = Result(Args...) const;
};
template <class Owner, class Result, class... Args>
struct SignatureOf<Result (Owner::*)(Args...) noexcept> : SignatureOf<Result (Owner::*)(Args...)> {};
template <class Owner, class Result, class... Args>
struct SignatureOf<Result (Owner::*)(Args...) const noexcept> : SignatureOf<Result (Owner::*)(Args...) const> {};

template <class Block>
concept HasOneForward = requires {
  &Block::forward;
};

template <class Result, class Unit, class... Args>
Result run_forward(Unit& unit, Args&&... args) {
  static_assert(!std::is_reference_v<Result>, "a unit's forward returns values: a reference may not live long enough");
  if constexpr (std::is_void_v<Result>) {
    unit.run_in_place(std::forward<Args>(args)...);
  } else {
    return unit.run(std::forward<Args>(args)...);
  }
}

/// Base with a forward of this signature, in the place of those that Base has.
template <class Base, class Signature>
class WithForward;

template <class Base, class Result, class... Args>
class WithForward<Base, Result(Args...)> : public Base {
 public:
  using Base::Base;
  Result forward(Args... args) { return run_forward<Result>(*this, std::forward<Args>(args)...); }
};

template <class Base, class Result, class... Args>
class WithForward<Base, Result(Args...) const> : public Base {
 public:
  using Base::Base;
  // A unit's state changes in a const forward too; modules are never made const.
  Result forward(Args... args) const {
    return run_forward<Result>(const_cast<WithForward&>(*this), std::forward<Args>(args)...);
  }
};

/// A virtual forward that is noexcept can only be overridden by its like: a fault ends the process there.
template <class Base, class Result, class... Args>
class WithForward<Base, Result(Args...) noexcept> : public Base {
 public:
  using Base::Base;
  Result forward(Args... args) noexcept { return run_forward<Result>(*this, std::forward<Args>(args)...); }
};

template <class Base, class Result, class... Args>
class WithForward<Base, Result(Args...) const noexcept> : public Base {
 public:
  using Base::Base;
  Result forward(Args... args) const noexcept {
    return run_forward<Result>(const_cast<WithForward&>(*this), std::forward<Args>(args)...);
  }
};

/// Base with forwards of all these signatures.
template <class Base, class... Signatures>
class WithForwards;

template <class Base, class Signature>
class WithForwards<Base, Signature> : public WithForward<Base, Signature> {
 public:
  using WithForward<Base, Signature>::WithForward;
};

template <class Base, class First, class Second, class... More>
class WithForwards<Base, First, Second, More...> : public WithForward<WithForwards<Base, Second, More...>, First> {
  using Others = WithForwards<Base, Second, More...>;

 public:
  using WithForward<Others, First>::WithForward;
  using WithForward<Others, First>::forward;
  using Others::forward;
};

/// Without named signatures: the block's only forward.
template <class Block, class UnitOfBlock, class... Signatures>
struct ForwardsOf {
  using type = WithForwards<UnitOfBlock, Signatures...>;
};

template <class Block, class UnitOfBlock>
struct ForwardsOf<Block, UnitOfBlock> {
  static_assert(HasOneForward<Block>,
                "forward is overloaded or a template; name what the unit is called with, such as "
                "sherd::Unit<Block, at::Tensor(at::Tensor)>");
  using type = WithForwards<UnitOfBlock, typename SignatureOf<decltype(&Block::forward)>::type>;
};

}  // namespace sherd::detail
