#include "sherd/recompute/recompute.h"

#include <ATen/Context.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

/// Something with a parameter, dropout and two uses of its argument.
struct Part {
  at::Tensor w = at::randn({5, 5}).requires_grad_();
  int runs = 0;
  at::Tensor operator()(const at::Tensor& x) {
    ++runs;
    return x + at::dropout(at::gelu(at::linear(x, w)), 0.4, /*train=*/true) * x;
  }
};

struct Gradients {
  at::Tensor y, x, w;
};

template <class Run>
Gradients gradients_of(Part& part, const at::Tensor& start, Run run) {
  part.w.mutable_grad().reset();
  at::manual_seed(7);
  const at::Tensor x = start.clone().requires_grad_();
  const at::Tensor y = run(x * 2);
  y.pow(2).sum().backward();
  return {y.detach(), x.grad(), part.w.grad()};
}

void expect_same(const Gradients& a, const Gradients& b) {
  EXPECT_TRUE(at::equal(a.y, b.y));
  EXPECT_TRUE(at::equal(a.x, b.x));
  EXPECT_TRUE(at::equal(a.w, b.w));
}

TEST(Recompute, GivesTheSameBits) {
  Part part;
  const at::Tensor start = at::randn({3, 5});
  const auto call = [&](const at::Tensor& x) { return part(x); };
  const Gradients plain = gradients_of(part, start, [&](const at::Tensor& x) { return part(part(x)); });
  part.runs = 0;
  const Gradients again =
      gradients_of(part, start, [&](const at::Tensor& x) { return recompute(call, recompute(call, x)); });
  EXPECT_EQ(part.runs, 4);
  expect_same(plain, again);
}

TEST(Recompute, Nests) {
  Part part;
  const at::Tensor start = at::randn({3, 5});
  const auto inner = [&](const at::Tensor& x) { return part(x); };
  const auto outer = [&](const at::Tensor& x) { return recompute(inner, part(x)); };
  const Gradients plain = gradients_of(part, start, [&](const at::Tensor& x) { return part(part(x)); });
  expect_same(plain, gradients_of(part, start, [&](const at::Tensor& x) { return recompute(outer, x); }));
}

TEST(Recompute, GoesOnWithTheRandomNumbersOfForward) {
  const auto draw = [](const at::Tensor& x) { return x * at::randn({2}); };
  const at::Tensor x = at::ones({2}).requires_grad_();
  const auto after_backward = [&](auto run) {
    at::manual_seed(3);
    run(x).sum().backward();
    return at::randn({4});
  };
  EXPECT_TRUE(at::equal(after_backward([&](const at::Tensor& t) { return draw(t); }),
                        after_backward([&](const at::Tensor& t) { return recompute(draw, t); })));
}

TEST(Recompute, KeepsNoActivations) {
  // Whatever the call makes is gone after it: only weak references are left.
  c10::weak_intrusive_ptr<c10::TensorImpl> inside(c10::intrusive_ptr<c10::TensorImpl>{});
  const at::Tensor w = at::ones({3}).requires_grad_();
  const auto call = [&](const at::Tensor& x) {
    const at::Tensor made = x * w;
    inside = c10::weak_intrusive_ptr<c10::TensorImpl>(made.getIntrusivePtr());
    return made * made;
  };
  const at::Tensor x = at::ones({3});
  const at::Tensor kept = call(x);
  EXPECT_FALSE(inside.expired());
  const at::Tensor y = recompute(call, x);
  EXPECT_TRUE(inside.expired());
  y.sum().backward();
  EXPECT_TRUE(at::equal(w.grad(), 2 * at::ones({3})));
}

TEST(Recompute, ArgumentsAndResultsOfManyKinds) {
  const at::Tensor w = at::randn({4}).requires_grad_();
  using Results = std::tuple<at::Tensor, std::optional<at::Tensor>, std::vector<at::Tensor>, int64_t>;
  const auto call = [&](const std::optional<at::Tensor>& x, std::pair<at::Tensor, double> y, int64_t n) -> Results {
    const at::Tensor product = x.value() * w * y.second;
    return {product * static_cast<double>(n), std::nullopt, {y.first, product.argmax(), x.value()}, n + 1};
  };
  const auto run = [&](auto&& f) {
    w.mutable_grad().reset();
    const at::Tensor x = at::ones({4}).requires_grad_(), y = (2 * at::ones({4})).requires_grad_();
    const auto [a, none, list, n] = f(std::optional(x), std::pair(y, 3.0), int64_t{5});
    EXPECT_FALSE(none.has_value());
    EXPECT_EQ(n, 6);
    EXPECT_FALSE(list[1].requires_grad());
    (a.sum() + (list[0] * list[2]).sum()).backward();
    return std::vector<at::Tensor>{a.detach(), x.grad(), y.grad(), w.grad().clone()};
  };
  const auto plain = run(call);
  const auto again = run([&](auto&&... args) { return recompute(call, std::forward<decltype(args)>(args)...); });
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], again[i])) << i;
}

TEST(Recompute, OneTensorAsTwoArguments) {
  const auto call = [](const at::Tensor& a, const at::Tensor& b) { return a * a * b; };
  const at::Tensor x = at::randn({4}).requires_grad_(), y = x.detach().clone().requires_grad_();
  call(x, x).sum().backward();
  recompute(call, y, y).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), y.grad()));
}

TEST(Recompute, WithoutInputsThatNeedGradients) {
  const at::Tensor w = at::randn({4}).requires_grad_();
  recompute([&](const at::Tensor& x) { return x * w; }, 3 * at::ones({4})).sum().backward();
  EXPECT_TRUE(at::equal(w.grad(), 3 * at::ones({4})));
}

TEST(Recompute, WithoutGradModeItIsAPlainCall) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = at::ones({2}).requires_grad_();
  EXPECT_FALSE(recompute([&](const at::Tensor& x) { return x * w; }, at::ones({2})).requires_grad());
}

TEST(Recompute, AnExceptionPasses) {
  int runs = 0;
  const at::Tensor w = at::ones({2}).requires_grad_();
  const auto call = [&](const at::Tensor& x) -> at::Tensor {
    if (++runs == 2) throw std::runtime_error("the second time");
    return x * w;
  };
  const at::Tensor y = recompute(call, at::ones({2}));
  EXPECT_THROW(y.sum().backward(), std::runtime_error);
  EXPECT_FALSE(w.grad().defined());
}

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(Recompute, SaysWhatItCannotDo) {
  const at::Tensor w = at::ones({2}).requires_grad_();
  const auto call = [&](const at::Tensor& x) { return x * w * w; };
  at::Tensor x = at::ones({2});
  at::Tensor y = recompute(call, x);
  y.sum().backward({}, /*retain_graph=*/true);
  EXPECT_TRUE(at::equal(w.grad(), 2 * at::ones({2}))) << "kept for a second backward";
  y.sum().backward();
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("[recompute] got a second backward"), std::string::npos);
  y = recompute(call, x);
  x.mul_(2);
  EXPECT_NE(error_of([&] { y.sum().backward(); }).find("argument 0 of a recomputed call changed in place"),
            std::string::npos);
  y = recompute(call, x);
  EXPECT_NE(error_of([&] { y.sum().backward({}, /*retain_graph=*/true, /*create_graph=*/true); }).find("create_graph"),
            std::string::npos);
  y = recompute(call, x);
  EXPECT_NE(error_of([&] { torch::autograd::grad({y.sum()}, {w}); }).find("torch::autograd::grad"), std::string::npos);
}

}  // namespace
}  // namespace sherd
