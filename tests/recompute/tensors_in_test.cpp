#include "sherd/recompute/tensors_in.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <variant>

namespace user {

enum class Mode { train, test };

struct State {
  at::Tensor hidden;
  std::optional<at::Tensor> cell;
  int64_t position = 0;
};

template <class F>
void for_each_tensor(const State& state, F&& call) {
  call(state.hidden);
  if (state.cell) call(*state.cell);
}

}  // namespace user

namespace sherd {
namespace {

at::Tensor t(int value) { return at::full({1}, value); }

template <class... T>
std::vector<int> found(const T&... values) {
  std::vector<int> result;
  for (const at::Tensor& tensor : tensors_in(values...)) result.push_back(tensor.item<int>());
  return result;
}

using Found = std::vector<int>;

TEST(TensorsIn, TensorsThemselvesInTheOrderOfTheArguments) {
  EXPECT_EQ(found(t(1), t(2), t(3)), (Found{1, 2, 3}));
  EXPECT_EQ(found(), Found{});
}

TEST(TensorsIn, AreTheSameTensors) {
  const at::Tensor one = t(1);
  EXPECT_TRUE(tensors_in(one)[0].is_same(one));
  EXPECT_FALSE(tensors_in(at::Tensor())[0].defined());
}

TEST(TensorsIn, Containers) {
  EXPECT_EQ(found(std::optional(t(1)), std::optional<at::Tensor>(), std::nullopt), (Found{1}));
  EXPECT_EQ(found(std::vector{t(1), t(2)}, std::vector<at::Tensor>()), (Found{1, 2}));
  EXPECT_EQ(found(std::array{t(1), t(2)}, std::array<at::Tensor, 0>()), (Found{1, 2}));
  EXPECT_EQ(found(std::tuple(t(1), 7, t(2)), std::tuple<>()), (Found{1, 2}));
  EXPECT_EQ(found(std::pair(t(1), t(2))), (Found{1, 2}));
  EXPECT_EQ(found(std::map<std::string, at::Tensor>{{"b", t(2)}, {"a", t(1)}}), (Found{1, 2}));
  EXPECT_EQ(found(std::unordered_map<int, at::Tensor>{{3, t(1)}}), (Found{1}));
}

TEST(TensorsIn, Nested) {
  const std::map<std::string, std::vector<std::pair<at::Tensor, std::optional<at::Tensor>>>> layers = {
      {"decoder", {{t(1), t(2)}, {t(3), std::nullopt}}}, {"encoder", {{t(4), t(5)}}}};
  EXPECT_EQ(found(std::tuple(layers, std::array{std::vector{t(6)}})), (Found{1, 2, 3, 4, 5, 6}));
}

TEST(TensorsIn, ATypeOfTheUsersOwn) {
  EXPECT_EQ(found(user::State{t(1), t(2)}), (Found{1, 2}));
  EXPECT_EQ(found(std::vector{user::State{t(1), {}}, user::State{t(2), t(3)}}), (Found{1, 2, 3}));
}

TEST(TensorsIn, WhatHoldsNoTensorIsPassedOver) {
  EXPECT_EQ(found(1, 2.5, true, 'c', std::string("text"), user::Mode::test, c10::Scalar(3), std::monostate(), t(9),
                  std::vector{true, false}, std::optional(3)),
            (Found{9}));
}

}  // namespace
}  // namespace sherd
