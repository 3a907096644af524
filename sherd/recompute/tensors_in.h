// Finds the tensors in the arguments and results of a user's forward: in optionals, vectors, arrays, tuples, pairs and
// maps of them, to any depth. A type of your own takes part through a function beside it, found by its arguments'
// types:
//
//   template <class F> void for_each_tensor(const MyType& value, F&& call) { call(value.hidden); }
//
// Any other type is a compile error, so that no tensor is overlooked.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sherd {

namespace detail {

struct AnyCall {
  void operator()(const at::Tensor&) const {}
};

template <class T>
concept HasTensorsOfItsOwn = requires(const T& value) {
  for_each_tensor(value, AnyCall{});
};

template <class T>
concept HoldsNoTensor = std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_same_v<T, std::string> ||
    std::is_same_v<T, c10::Scalar> || std::is_same_v<T, std::nullopt_t> || std::is_same_v<T, std::monostate>;

template <class T, template <class...> class Template>
inline constexpr bool is_a = false;
template <template <class...> class Template, class... Args>
inline constexpr bool is_a<Template<Args...>, Template> = true;

template <class T>
inline constexpr bool is_array = false;
template <class T, size_t N>
inline constexpr bool is_array<std::array<T, N>> = true;

template <class>
inline constexpr bool kUnknownType = false;

template <class T, class F>
void visit_tensors(const T& value, F&& call) {
  if constexpr (std::is_convertible_v<const T&, const at::Tensor&>) {
    call(static_cast<const at::Tensor&>(value));
  } else if constexpr (HasTensorsOfItsOwn<T>) {
    for_each_tensor(value, call);
  } else if constexpr (is_a<T, std::optional>) {
    if (value) visit_tensors(*value, call);
  } else if constexpr (is_a<T, std::vector> || is_array<T>) {
    for (const auto& item : value) visit_tensors(item, call);
  } else if constexpr (is_a<T, std::tuple> || is_a<T, std::pair>) {
    std::apply([&](const auto&... items) { (visit_tensors(items, call), ...); }, value);
  } else if constexpr (is_a<T, std::map> || is_a<T, std::unordered_map>) {
    for (const auto& [key, item] : value) visit_tensors(item, call);
  } else {
    static_assert(
        HoldsNoTensor<T> || kUnknownType<T>,
        "sherd does not know where the tensors in this type are; write for_each_tensor(const T&, F&&) beside it");
  }
}

}  // namespace detail

/// All tensors in `values`, in order.
template <class... T>
std::vector<at::Tensor> tensors_in(const T&... values) {
  std::vector<at::Tensor> found;
  [[maybe_unused]] const auto add = [&](const at::Tensor& tensor) { found.push_back(tensor); };
  (detail::visit_tensors(values, add), ...);
  return found;
}

/// Puts `replacement(tensor)` in the place of each tensor in `value`, which the caller owns.
template <class T, class F>
void replace_tensors(T& value, F&& replacement) {
  static_assert(!std::is_const_v<T>);
  // Visitors hand out const references; what they refer to lies inside `value`, which is not const.
  detail::visit_tensors(value, [&](const at::Tensor& tensor) {
    const_cast<at::Tensor&>(tensor) = replacement(tensor);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  });
}

}  // namespace sherd
