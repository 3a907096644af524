// Mixed precision and 8-bit moments: for every strategy and number of ranks the bits of the unsharded model.
#include "sherd/engine/precision.h"

#include <gtest/gtest.h>

#include "sherd/optim/native_products.h"
#include "tests/data/expect_config_error.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

class PrecisionTraining : public ::testing::TestWithParam<RankCase> {};
INSTANTIATE_TEST_SUITE_P(All, PrecisionTraining, ::testing::ValuesIn(training_cases()), rank_case_name);

/// Every row a block of moments, so that no shard cuts one.
constexpr int64_t kWidth = 256, kHidden = 128;

Precision precision_of(at::ScalarType compute, at::ScalarType storage, at::ScalarType reduce, Master master) {
  return {compute, storage, reduce, master, {"*norm*", "*bias"}};
}

const std::vector<Precision> kPrecisions = {
    precision_of(at::kFloat, at::kBFloat16, at::kFloat, Master::split),
    precision_of(at::kFloat, at::kBFloat16, at::kBFloat16, Master::fp32),
    precision_of(at::kFloat, at::kBFloat16, at::kFloat, Master::stochastic),
    precision_of(at::kFloat, at::kHalf, at::kHalf, Master::fp32),
    precision_of(at::kBFloat16, at::kBFloat16, at::kBFloat16, Master::split),
    precision_of(at::kBFloat16, at::kFloat, at::kFloat, Master::fp32),
};

at::Tensor precision_loss(auto& model, int rank, int step) {
  const at::Tensor x = training_input(rank, step, {2, kWidth}).to(model.entry.scalar_type());
  return model.forward(x).to(at::kFloat).sum() * 0.01;
}

void expect_unsharded_bits(const RankCase& c, const EngineOptions& options) {
  const auto plain = [] { return std::make_shared<ModelImpl<BlockImpl>>(kWidth, kHidden, 2); };
  const auto sharded = [] { return std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(kWidth, kHidden, 2); };
  expect_same_training(c, options, plain, sharded,
                       [](auto& m, int rank, int step) { return precision_loss(m, rank, step); });
}

TEST_P(PrecisionTraining, HasTheUnshardedBits) {
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    for (size_t k = 0; k < kPrecisions.size(); ++k) {
      SCOPED_TRACE(fmt::format("{} precision {}", strategy, k));
      EngineOptions options = clipping(strategy);
      options.precision = kPrecisions[k];
      // Each kind with fp32 and 8-bit moments, and with one round a step and several, somewhere.
      options.moments = k % 2 == 0 ? MomentType::eight_bits : MomentType::fp32;
      options.summing = k % 3 == 1 ? Summing::in_place : Summing::apart;
      expect_unsharded_bits(GetParam(), options);
    }
  }
}

TEST_P(PrecisionTraining, EightBitMomentsHaveTheUnshardedBits) {
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    for (const auto kind : {UpdateRuleOptions::Kind::adamw, UpdateRuleOptions::Kind::adam}) {
      EngineOptions options = clipping(strategy);
      options.moments = MomentType::eight_bits;
      options.update.kind = kind;
      expect_unsharded_bits(GetParam(), options);
    }
  }
}

TEST_P(PrecisionTraining, SgdHasTheUnshardedBits) {
  for (size_t k = 0; k < kPrecisions.size(); ++k) {
    EngineOptions options = clipping("zero2");
    options.precision = kPrecisions[k];
    options.update = {UpdateRuleOptions::Kind::sgd, 0.9, Nesterov::yes};
    expect_unsharded_bits(GetParam(), options);
  }
}

std::shared_ptr<ModelImpl<UnitModule<BlockImpl>>> model_of_units(int64_t hidden) {
  return std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(kWidth, hidden, 2);
}

/// Losses and final masters of a few steps on two ranks.
std::pair<std::vector<double>, Values> run_training(const EngineOptions& options, int steps = 5) {
  at::manual_seed(3);
  const auto start = values_of(*std::make_shared<ModelImpl<BlockImpl>>(kWidth, kHidden, 2));
  std::pair<std::vector<double>, Values> result;
  run_ranks(2, Kind::threads, [&](std::shared_ptr<Transport> transport) {
    const auto model = model_of_units(kHidden);
    Engine engine(model, transport, options, source_of(start));
    for (int step = 0; step < steps; ++step) {
      const at::Tensor loss = engine.forward([&] { return precision_loss(*model, transport->rank(), step); });
      engine.backward(loss);
      engine.step();
      if (transport->rank() == 0) result.first.push_back(loss.item<double>());
    }
    if (transport->rank() != 0) return;
    for (const auto& shard : engine.master_shards()) result.second[shard.fqn] = shard.values.clone();
  });
  return result;
}

TEST(PrecisionMasters, SplitIsTheFp32MasterBitForBit) {
  EngineOptions split = clipping(), whole = clipping();
  split.precision = precision_of(at::kFloat, at::kBFloat16, at::kFloat, Master::split);
  whole.precision = precision_of(at::kFloat, at::kBFloat16, at::kFloat, Master::fp32);
  for (const auto moments : {MomentType::fp32, MomentType::eight_bits}) {
    split.moments = whole.moments = moments;
    const auto a = run_training(split), b = run_training(whole);
    EXPECT_EQ(a.first, b.first);
    for (const auto& [name, values] : a.second) EXPECT_TRUE(at::equal(values, b.second.at(name))) << name;
  }
}

struct Bytes {
  double parameters, gradients, masters, moments;
  double all() const { return parameters + gradients + masters + moments; }
};

/// What the ledger of a rank says, for each of its parameters.
Bytes bytes_of(const EngineOptions& options) {
  Bytes bytes{};
  run_ranks(2, Kind::host, [&](std::shared_ptr<Transport> transport) {
    const auto model = model_of_units(4096);
    Engine engine(model, transport, options, source_of(values_of(*model_of_units(4096))));
    int64_t elements = 0;
    for (const auto& shard : engine.shards()) elements += shard.values.numel();
    const auto each = [&](MemoryKind kind) {
      return static_cast<double>(engine.ledger().total(kind)) / static_cast<double>(elements);
    };
    if (transport->rank() == 0)
      bytes = {each(MemoryKind::parameters), each(MemoryKind::gradients), each(MemoryKind::master),
               each(MemoryKind::moments)};
  });
  return bytes;
}

EngineOptions memory_options(std::optional<Precision> precision, MomentType moments) {
  EngineOptions options = clipping();
  options.precision = std::move(precision);
  options.moments = moments;
  options.summing = Summing::in_place;
  return options;
}

// The slack: norms, biases and what is below 4096 elements keeps fp32, and padding.
TEST(PrecisionMemory, IsWhatTheCombinationPromises) {
  constexpr double kSlack = 0.02;
  const auto split = precision_of(at::kFloat, at::kBFloat16, at::kFloat, Master::split);
  const auto narrow = precision_of(at::kFloat, at::kBFloat16, at::kBFloat16, Master::split);
  const auto none = precision_of(at::kFloat, at::kBFloat16, at::kBFloat16, Master::stochastic);
  EXPECT_NEAR(bytes_of(memory_options({}, MomentType::fp32)).all(), 16, kSlack);
  EXPECT_NEAR(bytes_of(memory_options(split, MomentType::eight_bits)).all(), 10.03, kSlack);
  const Bytes with_bf16_gradients = bytes_of(memory_options(narrow, MomentType::eight_bits));
  EXPECT_NEAR(with_bf16_gradients.all(), 8.03, kSlack);
  EXPECT_NEAR(with_bf16_gradients.all() - with_bf16_gradients.gradients, 6.03, kSlack);
  const Bytes without_master = bytes_of(memory_options(none, MomentType::eight_bits));
  EXPECT_NEAR(without_master.all() - without_master.gradients, 4.03, kSlack);
  EXPECT_EQ(without_master.masters, 0);
}

TEST(PrecisionMoments, ShardsThatCutBlocksKeepFp32AndThisIsSaid) {
  run_ranks(3, Kind::threads, [](std::shared_ptr<Transport> transport) {
    EngineOptions options = clipping();
    options.moments = MomentType::eight_bits;
    options.fp32_moments = {"*up"};
    const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(64, 128, 1);
    Engine engine(model, transport, options, source_of(values_of(*std::make_shared<ModelImpl<BlockImpl>>(64, 128, 1))));
    std::string said;
    for (const auto& warning : engine.warnings()) said += warning;
    EXPECT_NE(said.find("entry, tied"), std::string::npos) << said;  // 22 rows of 64
    EXPECT_NE(said.find("would cut a block of 256"), std::string::npos) << said;
    EXPECT_EQ(said.find("down"), std::string::npos) << said;       // 22 rows of 128: eleven blocks
    EXPECT_EQ(said.find("block0.up"), std::string::npos) << said;  // asked for
    EXPECT_EQ(said.find("norm"), std::string::npos) << said;       // small
  });
}

struct NamedNormImpl : torch::nn::Module {
  explicit NamedNormImpl(at::IntArrayRef sizes) { register_parameter("weight", at::ones(sizes)); }
};
struct NamedOtherImpl : torch::nn::Module {
  explicit NamedOtherImpl(at::IntArrayRef sizes) { register_parameter("weight", at::ones(sizes)); }
};

TEST(NormParameters, AreThoseOfModulesWhoseClassOrOwnNameSaysSo) {
  EXPECT_TRUE(named_as_norm("layers.0.input_layernorm", "sherd::WeightModule"));
  EXPECT_TRUE(named_as_norm("ln_1", "transformers::LlamaRMSNorm"));
  EXPECT_FALSE(named_as_norm("norm_of_blocks.linear", "Linear")) << "the name of the module around it";
  EXPECT_FALSE(named_as_norm("up", "normal::Unit<LayerNorm>")) << "namespaces and template arguments";
  torch::nn::Module model;
  model.register_module("ln", std::make_shared<NamedNormImpl>(at::IntArrayRef({3})));
  model.register_module("q_norm", std::make_shared<NamedOtherImpl>(at::IntArrayRef({3})));
  model.register_module("norm_projection", std::make_shared<NamedOtherImpl>(at::IntArrayRef({3, 3})));
  const auto around = model.register_module("normed", std::make_shared<NamedOtherImpl>(at::IntArrayRef({3})));
  around->register_module("other", std::make_shared<NamedOtherImpl>(at::IntArrayRef({3})));
  EXPECT_EQ(norm_parameters(model), (std::vector<std::string>{"ln.weight", "q_norm.weight"}));
}

TEST(PrecisionPolicies, AreResolved) {
  const auto resolved = [](PrecisionPolicy policy) { return resolve(policy, at::kCPU); };
  EXPECT_FALSE(resolved({}).is_mixed());
  EXPECT_TRUE(resolved({}).fp32_names.empty());
  const Precision automatic = resolved({.compute = "auto"});
  EXPECT_EQ(automatic.storage, at::kBFloat16);
  EXPECT_EQ(automatic.compute, has_native_products(at::kBFloat16, at::kCPU) ? at::kBFloat16 : at::kFloat);
  EXPECT_EQ(automatic.master, Master::split);
  EXPECT_EQ(automatic.reduce, at::kFloat);
  EXPECT_EQ(automatic.norms, Norms::fp32);
  EXPECT_EQ(resolved({.compute = "bf16", .norms = Norms::compute}).norms, Norms::compute);
  EXPECT_EQ(resolved({}).norms, Norms::compute) << "all is fp32 anyway";
  const Precision half = resolved({.compute = "fp16", .reduce = "fp16"});
  EXPECT_EQ(half.compute, at::kHalf);
  EXPECT_EQ(half.storage, at::kHalf);
  EXPECT_EQ(half.reduce, at::kHalf);
  EXPECT_EQ(half.master, Master::fp32);
  EXPECT_EQ(resolved({.compute = "bf16", .storage = "fp32"}).storage, at::kFloat);
  EXPECT_EQ(resolved({.storage = "bf16", .master = "none"}).master, Master::stochastic);
}

TEST(PrecisionPolicies, ThatDoNotGoTogetherAreRefused) {
  const auto refused = [](PrecisionPolicy policy, std::vector<std::string> parts) {
    expect_config_error([&] { resolve(policy, at::kCPU); }, parts);
  };
  refused({.compute = "int8"}, {"precision.compute", "int8", "try bf16"});
  refused({.storage = "fp16", .master = "split"}, {"precision.master", "fp16 storage", "try fp32"});
  refused({.master = "none"}, {"precision.master", "fp32 storage"});
  refused({.storage = "bf16", .master = "half"}, {"precision.master", "half", "try split"});
  refused({.reduce = "auto"}, {"precision.reduce", "auto"});
}

}  // namespace
}  // namespace sherd::testing
