#include "sherd/step/row_norm.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace sherd::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kOrders[] = {2, 1, 3, 0.5, -1, kInfinity, -kInfinity};

// Of rows that are dealt out to so many ranks, by turns.
double norm_over(int ranks, const std::vector<at::Tensor>& parameters, double order) {
  std::vector<RowNorm::Part> all;
  for (int rank = 0; rank < ranks; ++rank) {
    RowNorm norm(order);
    for (const auto& parameter : parameters) {
      const int64_t first = parameter.size(0) * rank / ranks, end = parameter.size(0) * (rank + 1) / ranks;
      norm.add(parameter.narrow(0, first, end - first), parameter.numel() / parameter.size(0));
    }
    all.push_back(norm.part());
  }
  return RowNorm(order).of(all);
}

TEST(RowNorm, IsTorchsForAnyTypeAndTheSameBitsForAnyNumberOfRanks) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kDouble, at::kComplexFloat}) {
    const auto options = at::TensorOptions().dtype(type);
    const std::vector<at::Tensor> parameters = {at::randn({7, 100}, options), at::randn({1, 3}, options),
                                                at::randn({11, 7000}, options)};
    std::vector<at::Tensor> flat;
    for (const auto& parameter : parameters)
      flat.push_back(parameter.view(-1).to(parameter.is_complex() ? at::kComplexDouble : at::kDouble));
    for (const double order : kOrders) {
      const double expected = at::linalg_vector_norm(at::cat(flat), order).item<double>();
      const double alone = norm_over(1, parameters, order);
      EXPECT_NEAR(alone, expected, std::abs(expected) * 1e-6) << order;
      for (const int ranks : {2, 3, 5}) EXPECT_EQ(norm_over(ranks, parameters, order), alone) << order;
    }
  }
}

TEST(RowNorm, SaysThatSomethingIsNoNumber) {
  const at::Tensor fine = at::randn({3, 5});
  for (const double order : {2.0, 1.0, kInfinity}) {
    EXPECT_TRUE(std::isnan(norm_over(3, {fine, at::full({1, 2}, NAN), fine}, order))) << order;
    EXPECT_EQ(norm_over(2, {fine, at::full({1, 2}, -INFINITY)}, order), kInfinity) << order;
  }
}

}  // namespace
}  // namespace sherd::testing
