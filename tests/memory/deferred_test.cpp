#include "sherd/memory/deferred.h"

#include <ATen/ops/linear.h>
#include <gtest/gtest.h>

#include <unordered_set>

#include "sherd/models/llama.h"

namespace sherd {
namespace {

// Fills with the element's index, and remembers what it was asked for.
struct Counting {
  std::vector<RowRange> asked;

  ParameterSource source() {
    return [this](const RowRange& range, float* out) {
      asked.push_back(range);
      std::iota(out, out + range.rows * range.row_elements, 0.0F);
    };
  }
};

TEST(Deferred, UsingOneSaysWhatToDo) {
  const auto weight = deferred_parameter({3, 5});
  EXPECT_TRUE(weight.requires_grad());
  EXPECT_EQ(weight.nbytes(), 60U);
  try {
    at::linear(at::zeros({2, 5}), weight);
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("[models] a parameter of shape [3, 5] has no memory yet"),
              std::string::npos)
        << error.what();
  }
}

TEST(Deferred, MaterializeKeepsTheTensorAndAlignsItsMemory) {
  torch::nn::Module module;
  const auto matrix = module.register_parameter("matrix", deferred_parameter({3, 5}));
  const auto scalar = module.register_parameter("scalar", deferred_parameter({}));
  const auto none = module.register_parameter("none", deferred_parameter({0, 4}));
  Counting counting;
  materialize(module, counting.source());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix.data_ptr()) % 64, 0U);
  EXPECT_EQ(matrix.unsafeGetTensorImpl(), module.named_parameters()["matrix"].unsafeGetTensorImpl());
  EXPECT_EQ(matrix[2][4].item<float>(), 14.0F);
  EXPECT_EQ(scalar.item<float>(), 0.0F);
  ASSERT_EQ(counting.asked.size(), 2U);
  EXPECT_EQ(counting.asked[0].row_elements, 5);
  EXPECT_EQ(counting.asked[1].rows, 1);
  at::linear(at::ones({1, 5}), matrix).sum().backward();
  EXPECT_EQ(matrix.grad().sum().item<float>(), 15.0F);
}

TEST(Deferred, TiedParametersAreFilledOnce) {
  torch::nn::Module module;
  const auto weight = deferred_parameter({2, 2});
  module.register_parameter("first", weight);
  module.register_parameter("second", weight);
  Counting counting;
  materialize(module, counting.source());
  EXPECT_EQ(counting.asked.size(), 1U);
}

TEST(Deferred, AVeryLargeModelTakesNoMemory) {
  Llama model(LlamaConfig::preset("7b"));
  int64_t elements = 0;
  for (const auto& parameter : model->parameters()) elements += parameter.numel();
  EXPECT_EQ(elements, LlamaConfig::preset("7b").parameters());
}

}  // namespace
}  // namespace sherd
