#include "sherd/models/llama.h"

#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/randint.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "sherd/base/error.h"
#include "sherd/checkpoint/hugging_face.h"
#include "sherd/memory/deferred.h"
#include "sherd/models/initializer.h"

namespace sherd {
namespace {

LlamaConfig odd_config(OutputHead head) { return {60, 3, 6, 2, 10, 77, 101, 48, 10000.0, 1e-5, head}; }

at::Tensor some_tokens(int64_t rows, int64_t time, int64_t vocab) {
  return at::randint(vocab, {rows, time}, at::TensorOptions().dtype(at::kLong));
}

// Rows [first, first + rows) of the golden stream, one token longer than the context.
at::Tensor golden_rows(int64_t first, int64_t rows) {
  std::ifstream file(std::string(SHERD_GOLDEN) + "/tiny/tokens.bin", std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const auto* tokens = reinterpret_cast<const uint16_t*>(bytes.data());
  auto out = at::empty({rows, 65}, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < 65; ++i) out[row][i] = static_cast<int64_t>(tokens[(first + row) * 64 + i]);
  }
  return out;
}

// Names of the operators that `body` and its backward run.
template <class Body>
std::multiset<std::string> operators_of(const Body& body) {
  static std::multiset<std::string> names;
  static std::mutex mutex;
  names.clear();
  const auto handle = at::addGlobalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
        const std::lock_guard lock(mutex);
        names.insert(function.name());
        return nullptr;
      }).scopes({at::RecordScope::FUNCTION}));
  body();
  at::removeCallback(handle);
  return names;
}

TEST(Llama, HasHuggingFacesNames) {
  Llama model(odd_config(OutputHead::untied));
  std::set<std::string> names;
  for (const auto& item : model->named_parameters()) names.insert(item.key());
  std::set<std::string> expected{"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
  for (int layer = 0; layer < 3; ++layer) {
    for (const char* name :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"})
      expected.insert(fmt::format("model.layers.{}.{}.weight", layer, name));
  }
  EXPECT_EQ(names, expected);
  Llama tied(odd_config(OutputHead::tied));
  EXPECT_EQ(tied->named_parameters().find("lm_head.weight"), nullptr);
}

TEST(Llama, GoldenFolderGivesTheReferenceLoss) {
  const HuggingFaceFolder folder(std::string(SHERD_GOLDEN) + "/tiny");
  Llama model(LlamaConfig::from_hugging_face(folder.config()));
  materialize(*model, folder.source());
  const auto rows = golden_rows(0, 4);
  const auto loss = model->loss(rows.narrow(1, 0, 64), rows.narrow(1, 1, 64), 1.0 / 256);
  EXPECT_NEAR(loss.item<double>() / 5.557069778442383, 1.0, 2e-6);

  loss.backward();
  double square = 0.0;
  for (const auto& parameter : model->parameters())
    square += parameter.grad().to(at::kDouble).square().sum().item<double>();
  const auto losses = nlohmann::json::parse(std::ifstream(std::string(SHERD_GOLDEN) + "/tiny/losses.json"));
  EXPECT_NEAR(std::sqrt(square) / losses["gradient_norms"][0].get<double>(), 1.0, 2e-6);
}

TEST(Llama, ChunkedLossIsTheLossOfTheWholeLogits) {
  for (const auto head : {OutputHead::untied, OutputHead::tied}) {
    Llama model(odd_config(head));
    materialize(*model, seeded_normal(3, 0.2));
    const auto tokens = some_tokens(3, 41, 101);
    auto targets = some_tokens(3, 41, 101);
    targets.select(1, 7).fill_(-100);
    const auto plain =
        at::cross_entropy_loss(model->logits(tokens).flatten(0, 1), targets.flatten(), {}, at::Reduction::Sum);
    plain.backward();
    std::map<std::string, at::Tensor> expected;
    for (const auto& item : model->named_parameters()) expected[item.key()] = item.value().grad().clone();
    model->zero_grad();
    const auto loss = model->loss(tokens, targets, 1.0);
    loss.backward();
    EXPECT_NEAR(loss.item<double>() / plain.item<double>(), 1.0, 1e-6);
    for (const auto& item : model->named_parameters()) {
      const auto& grad = expected[item.key()];
      EXPECT_LT(((item.value().grad() - grad).norm() / grad.norm()).item<double>(), 2e-6) << item.key();
    }
  }
}

TEST(Llama, Of16BitsIsNearTheFp32Model) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    for (const int64_t window : {0, 5}) {
      LlamaConfig config = odd_config(OutputHead::untied);
      config.window = window;
      if (window > 0) config.architecture = Architecture::mistral;
      Llama wide(config), narrow(config);
      materialize(*wide, seeded_normal(3, 0.05));
      materialize(*narrow, seeded_normal(3, 0.05));
      for (auto& item : narrow->named_parameters())
        if (item.key().find("norm") == std::string::npos) item.value().set_data(item.value().to(type));
      const auto tokens = some_tokens(3, 41, 101), targets = some_tokens(3, 41, 101);
      const auto expected = wide->loss(tokens, targets, 1e-2), loss = narrow->loss(tokens, targets, 1e-2);
      expected.backward();
      loss.backward();
      EXPECT_NEAR(loss.item<double>() / expected.item<double>(), 1.0, type == at::kHalf ? 1e-3 : 1e-2);
      const auto gradients = wide->named_parameters();
      for (const auto& item : narrow->named_parameters()) {
        const auto& exact = gradients[item.key()].grad();
        EXPECT_LT(((item.value().grad().to(at::kFloat) - exact).norm() / exact.norm()).item<double>(), 0.1)
            << item.key();
      }
    }
  }
}

TEST(Llama, TakesTheFlashPathForwardAndBackward) {
  for (const auto& config : {LlamaConfig::preset("tiny"), odd_config(OutputHead::untied)}) {
    ASSERT_NE(config.heads, config.kv_heads);
    Llama model(config);
    materialize(*model, seeded_normal(0));
    const auto tokens = some_tokens(2, 33, config.vocab);
    const auto names = operators_of([&] { model->loss(tokens, tokens, 1.0).backward(); });
    const auto layers = static_cast<size_t>(config.layers);
    EXPECT_EQ(names.count("aten::_scaled_dot_product_flash_attention_for_cpu"), layers);
    EXPECT_EQ(names.count("aten::_scaled_dot_product_flash_attention_for_cpu_backward"), layers);
    EXPECT_EQ(names.count("aten::_scaled_dot_product_attention_math"), 0U);
  }
}

// Grouped-query attention is attention whose key and value heads are repeated: forward and every gradient.
TEST(Llama, GroupedHeadsAreRepeatedHeads) {
  const auto config = odd_config(OutputHead::untied);
  auto repeated_config = config;
  repeated_config.kv_heads = config.heads;
  Llama model(config), repeated(repeated_config);
  materialize(*model, seeded_normal(5, 0.2));
  const auto parameters = model->named_parameters();
  const auto is_grouped = [](const std::string& name) {
    return name.find("k_proj") != std::string::npos || name.find("v_proj") != std::string::npos;
  };
  const auto repeat = [&](const at::Tensor& weight) {
    return weight.detach().view({2, 1, 10, 60}).expand({2, 3, 10, 60}).reshape({60, 60});
  };
  materialize(*repeated, [&](const RowRange& range, float* out) {
    const auto& weight = parameters[range.fqn];
    const auto values = (is_grouped(range.fqn) ? repeat(weight) : weight.detach()).contiguous();
    std::memcpy(out, values.data_ptr<float>(), values.nbytes());
  });
  const auto tokens = some_tokens(2, 40, 101);
  const auto loss = model->loss(tokens, tokens, 1.0), expected = repeated->loss(tokens, tokens, 1.0);
  EXPECT_NEAR(loss.item<double>() / expected.item<double>(), 1.0, 1e-6);
  loss.backward();
  expected.backward();
  for (const auto& item : repeated->named_parameters()) {
    auto grad = item.value().grad();
    if (is_grouped(item.key())) grad = grad.view({2, 3, 10, 60}).sum(1).reshape({20, 60});
    EXPECT_LT(((parameters[item.key()].grad() - grad).norm() / grad.norm()).item<double>(), 5e-6) << item.key();
  }
}

TEST(Llama, IsCausal) {
  Llama model(odd_config(OutputHead::untied));
  materialize(*model, seeded_normal(1, 0.2));
  const at::NoGradGuard no_grad;
  const auto tokens = some_tokens(1, 30, 101);
  auto changed = tokens.clone();
  changed.select(1, 20).add_(1).remainder_(101);
  const auto difference = (model->logits(tokens) - model->logits(changed)).abs().amax({0, 2});
  EXPECT_LT(difference.narrow(0, 0, 20).max().item<float>(), 1e-5F);
  EXPECT_GT(difference.narrow(0, 20, 10).min().item<float>(), 1e-4F);
}

// A token sees so many positions, its own included, in each windowed layer; and attention still takes the flash path.
TEST(Llama, WindowsLimitWhatATokenSees) {
  auto config = odd_config(OutputHead::untied);
  config.architecture = Architecture::qwen2;
  config.window = 4;
  config.windowed_layers = {true, false, true};
  const auto farthest = [](const LlamaConfig& shape) {
    Llama model(shape);
    materialize(*model, seeded_normal(1, 0.2));
    const at::NoGradGuard no_grad;
    const auto tokens = some_tokens(1, 30, 101);
    auto changed = tokens.clone();
    changed.select(1, 2).add_(1).remainder_(101);
    const auto difference = (model->logits(tokens) - model->logits(changed)).abs().amax({0, 2});
    return difference.gt(0).nonzero().max().item<int64_t>() - 2;
  };
  EXPECT_EQ(farthest(config), 27);
  config.windowed_layers = {};
  EXPECT_EQ(farthest(config), 3 * 3);
  config.layers = 1;
  EXPECT_EQ(farthest(config), 3);

  Llama model(config);
  materialize(*model, seeded_normal(0));
  const auto tokens = some_tokens(2, 33, config.vocab);
  const auto names = operators_of([&] { model->loss(tokens, tokens, 1.0).backward(); });
  EXPECT_EQ(names.count("aten::_scaled_dot_product_flash_attention_for_cpu"), 1U);
  EXPECT_EQ(names.count("aten::_scaled_dot_product_flash_attention_for_cpu_backward"), 1U);
}

// Written token by token, or in pieces, a text has the logits that it has at once.
TEST(Llama, ACacheChangesNoLogits) {
  auto config = odd_config(OutputHead::untied);
  const at::NoGradGuard no_grad;
  const auto tokens = some_tokens(2, config.context, config.vocab);
  for (const int64_t window : {0, 4}) {
    config.window = window;
    if (window > 0) config.architecture = Architecture::qwen2;
    if (window > 0) config.windowed_layers = {true, false, true};
    Llama model(config);
    materialize(*model, seeded_normal(1, 0.2));
    const auto expected = model->logits(tokens);
    for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{1}, {config.context}, {3, 7, 2}, {11, 1, 1}}) {
      KeyValueCache cache(config);
      for (size_t i = 0; cache.room() > 0; ++i) {
        const int64_t first = cache.length(), count = std::min(pieces[i % pieces.size()], cache.room());
        const auto logits = model->next_logits(tokens.narrow(1, first, count), cache);
        const auto off = (logits - expected.select(1, first + count - 1)).abs().max().item<float>();
        EXPECT_LT(off, 3e-5F) << "window " << window << ", " << count << " tokens after " << first;
      }
      EXPECT_THROW(model->next_logits(tokens.narrow(1, 0, 1), cache), ConfigError);
      cache.clear();
      const auto again = model->next_logits(tokens.narrow(1, 0, 5), cache);
      EXPECT_LT((again - expected.select(1, 4)).abs().max().item<float>(), 1e-5F);
    }
  }
}

TEST(Llama, AQwen2HasBiasesThatStartAtZeroAndLearn) {
  auto config = odd_config(OutputHead::tied);
  config.architecture = Architecture::qwen2;
  Llama model(config);
  materialize(*model, seeded_normal(0));
  const auto tokens = some_tokens(2, 33, config.vocab);
  model->loss(tokens, tokens, 1.0).backward();
  int64_t count = 0, biases = 0;
  for (const auto& item : model->named_parameters()) {
    count += item.value().numel();
    if (!item.key().ends_with(".bias")) continue;
    ++biases;
    EXPECT_EQ(item.value().abs().max().item<float>(), 0.0F) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<float>(), 0.0F) << item.key();
  }
  EXPECT_EQ(biases, 3 * config.layers);
  EXPECT_EQ(count, config.parameters());
}

TEST(Llama, BlocksComeFromTheFactory) {
  struct Counted : LlamaBlockImpl {
    using LlamaBlockImpl::LlamaBlockImpl;
    int calls = 0;
    at::Tensor forward(const at::Tensor& x, const at::Tensor& rope, const std::optional<at::Tensor>& mask) override {
      ++calls;
      return LlamaBlockImpl::forward(x, rope, mask);
    }
  };
  std::vector<std::shared_ptr<Counted>> blocks;
  Llama model(odd_config(OutputHead::tied),
              [&](const LlamaConfig& config) { return blocks.emplace_back(std::make_shared<Counted>(config)); });
  materialize(*model, seeded_normal(1));
  model->logits(some_tokens(1, 2, 101));
  ASSERT_EQ(blocks.size(), 3U);
  for (const auto& block : blocks) EXPECT_EQ(block->calls, 1);
}

TEST(Llama, RefusesRowsLongerThanTheContext) {
  Llama model(odd_config(OutputHead::tied));
  materialize(*model, seeded_normal(1));
  EXPECT_NO_THROW(model->logits(some_tokens(1, 48, 101)));
  EXPECT_THROW(model->logits(some_tokens(1, 49, 101)), ConfigError);
  EXPECT_THROW(model->logits(some_tokens(1, 8, 101).flatten()), ConfigError);
  EXPECT_ANY_THROW(model->logits(at::full({1, 4}, 101, at::kLong)));
}

}  // namespace
}  // namespace sherd
