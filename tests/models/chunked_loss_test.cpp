#include "sherd/models/chunked_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/models/devices.h"

namespace sherd {
namespace {

struct Sizes {
  int64_t tokens, dim, vocab;
};

double relative(const at::Tensor& got, const at::Tensor& expected) {
  return ((got.cpu().to(at::kDouble) - expected.cpu().to(at::kDouble)).norm() / expected.to(at::kDouble).norm().cpu())
      .item<double>();
}

struct Result {
  at::Tensor loss, dx, dweight;
};

// The loss of whole logits, in the given type.
Result whole_logits(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets, double scale,
                    at::ScalarType type) {
  const auto leaf = [&](const at::Tensor& tensor) { return tensor.detach().to(type, false, true).requires_grad_(); };
  const auto x_leaf = leaf(x), weight_leaf = leaf(weight);
  const auto loss =
      scale * at::cross_entropy_loss(at::linear(x_leaf, weight_leaf), targets, {}, at::Reduction::Sum, kIgnoredTarget);
  loss.backward();
  return {loss.detach(), x_leaf.grad(), weight_leaf.grad()};
}

// Inputs on a device, one target in three ignored, and the plain result in double.
struct Case {
  at::Tensor x, weight, targets;
  Result exact, plain;

  Case(const Sizes& sizes, at::Device device, double scale) {
    const auto options = at::TensorOptions().device(device);
    x = at::randn({sizes.tokens, sizes.dim}, options).requires_grad_();
    weight = at::randn({sizes.vocab, sizes.dim}, options).requires_grad_();
    targets = at::randint(sizes.vocab, {sizes.tokens}, options.dtype(at::kLong));
    targets.slice(0, 0, sizes.tokens, 3).fill_(kIgnoredTarget);
    exact = whole_logits(x, weight, targets, scale, at::kDouble);
    plain = whole_logits(x, weight, targets, scale, at::kFloat);
  }

  // fp32 itself is off by 1e-5 for large vocabularies; beyond 1e-6, no worse than whole logits in fp32 are.
  void expect_matches(const at::Tensor& loss) const {
    const auto expect = [](const at::Tensor& got, const at::Tensor& exact, const at::Tensor& plain) {
      EXPECT_LT(relative(got, exact), std::max(1e-6, 1.5 * relative(plain, exact)));
    };
    expect(loss, exact.loss, plain.loss);
    expect(x.grad(), exact.dx, plain.dx);
    expect(weight.grad(), exact.dweight, plain.dweight);
  }
};

// The largest and the current number of bytes allocated on this thread.
struct Allocations : c10::MemoryReportingInfoBase {
  int64_t largest = 0, current = 0, peak = 0;
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    largest = std::max(largest, size);
    current += size;
    peak = std::max(peak, current);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

TEST(LinearCrossEntropy, MatchesWholeLogits) {
  for (const auto device : test_devices()) {
    for (const auto& sizes : {Sizes{1, 3, 2}, Sizes{77, 24, 101}, Sizes{131, 16, 40000}, Sizes{130, 8, 32768}}) {
      const Case test(sizes, device, 0.37);
      const auto loss = linear_cross_entropy(test.x, test.weight, test.targets, 0.37);
      EXPECT_EQ(loss.dim(), 0);
      loss.backward();
      if (sizes.tokens == 1) {  // the only target is ignored
        EXPECT_EQ(loss.item<double>(), 0.0);
        EXPECT_EQ(test.x.grad().abs().sum().item<double>(), 0.0);
        EXPECT_EQ(test.weight.grad().abs().sum().item<double>(), 0.0);
        continue;
      }
      SCOPED_TRACE(sizes.vocab);
      test.expect_matches(loss);
    }
  }
}

TEST(LinearCrossEntropy, HasNoChunkBoundaryInItsValue) {
  const int64_t vocab = 32768, chunk = loss_chunk_tokens(vocab);
  for (const int64_t tokens : {chunk - 1, chunk, chunk + 1, 2 * chunk}) {
    const Case test({tokens, 5, vocab}, at::kCPU, 1.0);
    const auto loss = linear_cross_entropy(test.x, test.weight, test.targets, 1.0);
    loss.backward();
    SCOPED_TRACE(tokens);
    test.expect_matches(loss);
  }
}

TEST(LinearCrossEntropy, StaysFiniteForLargeLogits) {
  const auto x = at::full({4, 1}, 1000.0F).requires_grad_();
  const auto weight = at::tensor(std::vector<float>{1.0F, -1.0F, 0.5F}).view({3, 1});
  const auto loss = linear_cross_entropy(x, weight, at::tensor(std::vector<int64_t>{0, 1, 2, kIgnoredTarget}), 1.0);
  EXPECT_FLOAT_EQ(loss.item<float>(), 2500.0F);
  loss.backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

TEST(LinearCrossEntropy, ComputesOnlyTheGradientsAskedFor) {
  Case test({70, 6, 50}, at::kCPU, 2.0);
  linear_cross_entropy(test.x, test.weight.detach(), test.targets, 2.0).backward();
  EXPECT_LT(relative(test.x.grad(), test.exact.dx), 1e-6);
  EXPECT_FALSE(test.weight.grad().defined());
  linear_cross_entropy(test.x.detach(), test.weight, test.targets, 2.0).backward();
  EXPECT_LT(relative(test.weight.grad(), test.exact.dweight), 1e-6);

  const at::NoGradGuard no_grad;
  const auto loss = linear_cross_entropy(test.x, test.weight, test.targets, 2.0);
  EXPECT_FALSE(loss.requires_grad());
  EXPECT_LT(relative(loss, test.exact.loss), 1e-6);
}

TEST(LinearCrossEntropy, FollowsTheGradientOfItsResult) {
  Case test({70, 6, 50}, at::kCPU, 1.0);
  (3.0 * linear_cross_entropy(test.x, test.weight, test.targets, 1.0)).backward();
  EXPECT_LT(relative(test.x.grad(), 3.0 * test.exact.dx), 1e-6);
  EXPECT_LT(relative(test.weight.grad(), 3.0 * test.exact.dweight), 1e-6);
}

TEST(LinearCrossEntropy, HasBitsThatDoNotDependOnThreads) {
  // With one element a dot product has no order, so the bits of the products do not depend on threads either.
  const int before = at::get_num_threads();
  std::vector<double> losses;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const auto x = at::ones({300, 1}), weight = at::arange(700, at::kFloat).mul_(0.01).view({700, 1});
    const auto targets = at::arange(300, at::kLong);
    const at::NoGradGuard no_grad;
    losses.push_back(linear_cross_entropy(x, weight, targets, 1.0).item<double>());
  }
  at::set_num_threads(before);
  EXPECT_EQ(losses[1], losses[0]);
  EXPECT_EQ(losses[2], losses[0]);
}

TEST(LinearCrossEntropy, NeverMakesWholeLogitsNorCopiesItsGradients) {
  const Sizes sizes{513, 4, 32768};
  Case test(sizes, at::kCPU, 1.0);
  const int64_t padded = sizes.vocab + 32, chunk_bytes = loss_chunk_tokens(sizes.vocab) * padded * 4,
                weight_bytes = sizes.vocab * sizes.dim * 4;
  auto allocations = std::make_shared<Allocations>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, allocations);
    linear_cross_entropy(test.x, test.weight, test.targets, 1.0).backward();
  }
  EXPECT_GE(allocations->largest, chunk_bytes / padded * sizes.vocab);  // the observer works
  EXPECT_LE(allocations->largest, chunk_bytes + 64);
  EXPECT_LT(allocations->peak, chunk_bytes + weight_bytes + (1 << 20));
}

// Values of 16 bits: logits and their gradients are rounded, sums are not; the loss is fp32.
TEST(LinearCrossEntropy, Of16BitsIsNearTheFp32Result) {
  const Sizes sizes{300, 24, 97};
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const double unit = type == at::kHalf ? 0x1p-11 : 0x1p-8;
    const auto targets = at::randint(sizes.vocab, {sizes.tokens}, at::kLong);
    const auto x = at::randn({sizes.tokens, sizes.dim}).to(type).requires_grad_();
    const auto weight = (0.3 * at::randn({sizes.vocab, sizes.dim})).to(type).requires_grad_();
    // Without care, gradients of 1e-6 would be lost in fp16 before backward brings them to size.
    const double scale = 1e-6, loss_scale = 1e6;
    const auto loss = linear_cross_entropy(x, weight, targets, scale);
    EXPECT_EQ(loss.scalar_type(), at::kFloat);
    (loss * loss_scale).backward();
    const Result exact = whole_logits(x, weight, targets, 1.0, at::kDouble);
    EXPECT_LT(relative(loss / scale, exact.loss), unit);
    EXPECT_EQ(x.grad().scalar_type(), type);
    EXPECT_LT(relative(x.grad(), exact.dx), 4 * unit);
    EXPECT_LT(relative(weight.grad(), exact.dweight), 4 * unit);
  }
}

TEST(LinearCrossEntropy, RefusesATargetOutsideTheVocabulary) {
  const auto x = at::zeros({2, 3}), weight = at::zeros({5, 3});
  for (const int64_t target : {int64_t{5}, int64_t{-1}}) {
    try {
      linear_cross_entropy(x, weight, at::tensor(std::vector<int64_t>{0, target}), 1.0);
      FAIL();
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(fmt::format("got target {}, expected 0 to 4", target)),
                std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace sherd
