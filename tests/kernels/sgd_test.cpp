#include "sherd/kernels/sgd.h"

#include <gtest/gtest.h>

#include "tests/kernels/targets.h"

namespace sherd::kernels {
namespace {

using testing::bits;
using testing::for_each_target;
using testing::kSizes;
using testing::random_floats;

constexpr SgdScalars kSgd{.lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .gradient_scale = 0.37};
enum class SgdForm { plain, momentum, nesterov };
constexpr SgdForm kForms[] = {SgdForm::plain, SgdForm::momentum, SgdForm::nesterov};

struct SgdState {
  std::vector<float> gradient, parameter, momentum;

  explicit SgdState(int64_t n)
      : gradient(random_floats(n, 1)), parameter(random_floats(n, 2)), momentum(random_floats(n, 3)) {}

  void update(SgdForm form, int64_t begin, int64_t end) {
    const float* g = gradient.data() + begin;
    float* p = parameter.data() + begin;
    float* b = momentum.data() + begin;
    if (form == SgdForm::plain) return sgd(kSgd, end - begin, g, Fp32Weights{p});
    (form == SgdForm::nesterov ? sgd_nesterov : sgd_momentum)(kSgd, end - begin, g, Fp32Weights{p}, b);
  }
};

// The documented operations one by one: the kernels must give these very bits.
void sgd_reference(SgdForm form, SgdState& state) {
  const auto lr = static_cast<float>(kSgd.lr), mu = static_cast<float>(kSgd.momentum);
  for (size_t i = 0; i < state.gradient.size(); ++i) {
    float& p = state.parameter[i];
    float& b = state.momentum[i];
    const float g =
        state.gradient[i] * static_cast<float>(kSgd.gradient_scale) + static_cast<float>(kSgd.weight_decay) * p;
    if (form != SgdForm::plain) b = mu * b + g;
    const float direction = form == SgdForm::plain ? g : form == SgdForm::momentum ? b : g + mu * b;
    p = p - lr * direction;
  }
}

void expect_equal(const SgdState& got, const SgdState& expected) {
  EXPECT_EQ(bits(got.parameter), bits(expected.parameter));
  EXPECT_EQ(bits(got.momentum), bits(expected.momentum));
  EXPECT_EQ(bits(got.gradient), bits(expected.gradient));
}

TEST(Sgd, GivesTheReferenceBitsOnEveryTargetWhereverTheRangeIsSplit) {
  for (const SgdForm form : kForms) {
    for (const int64_t n : kSizes) {
      SCOPED_TRACE(n);
      SgdState expected(n);
      sgd_reference(form, expected);
      for_each_target([&] {
        for (const int64_t cut : {int64_t{0}, n / 3}) {
          SgdState got(n);
          got.update(form, 0, cut);
          got.update(form, cut, n);
          expect_equal(got, expected);
        }
      });
    }
  }
}

TEST(Sgd, WritesNothingOutside) {
  for_each_target([] {
    for (const SgdForm form : kForms) {
      const int64_t n = 131, first = 3;
      SgdState got(first + n + 16), all = got;
      const SgdState before = got;
      got.update(form, first, first + n);
      sgd_reference(form, all);
      for (int64_t i = 0; i < first + n + 16; ++i) {
        const auto k = static_cast<size_t>(i);
        const SgdState& expected = i >= first && i < first + n ? all : before;
        EXPECT_EQ(got.parameter[k], expected.parameter[k]) << i;
        EXPECT_EQ(got.momentum[k], expected.momentum[k]) << i;
      }
    }
  });
}

}  // namespace
}  // namespace sherd::kernels
