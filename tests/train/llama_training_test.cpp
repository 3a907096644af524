// A Llama through the engine, against the recorded reference and against itself under every strategy.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "sherd/checkpoint/hugging_face.h"
#include "sherd/data/batch.h"
#include "sherd/data/step_plan.h"
#include "sherd/engine/engine.h"
#include "sherd/models/initializer.h"
#include "sherd/train/training_setup.h"
#include "tests/support/ranks.h"

namespace sherd::testing {
namespace {

const std::string kTiny = std::string(SHERD_GOLDEN) + "/tiny";

struct Options {
  std::string strategy = "zero3";
  int64_t rows = 4;
  int64_t accumulate = 1;
  Gradients between = Gradients::reduce;  // what all but the last backward of a step do
  ReshardPolicy reshard = ReshardPolicy::units;
  int64_t steps = 20;
  OutputHead head = OutputHead::untied;
};

struct Trace {
  std::vector<double> losses, norms;
  std::map<std::string, std::vector<float>> weights;  // whole, from all ranks' rows
  bool operator==(const Trace&) const = default;
};

class Recorder {
 public:
  void add(const std::vector<OwnedShard>& shards, Trace& trace) {
    const std::lock_guard lock(mutex_);
    for (const auto& shard : shards) {
      int64_t elements = 1;
      for (const int64_t size : shard.sizes) elements *= size;
      auto& whole = trace.weights[shard.fqn];
      whole.resize(static_cast<size_t>(elements));
      std::memcpy(whole.data() + shard.rows.first * shard.row_elements, shard.values.const_data_ptr<float>(),
                  static_cast<size_t>(shard.values.numel()) * sizeof(float));
    }
  }

 private:
  std::mutex mutex_;
};

Trace train(int ranks, Kind kind, const Options& options) {
  const HuggingFaceFolder folder(kTiny);
  LlamaConfig config = LlamaConfig::from_hugging_face(folder.config());
  config.head = options.head;
  const ParameterSource source = options.head == OutputHead::tied ? seeded_normal(1) : folder.source();
  const auto tokens = open_token_file(kTiny + "/tokens.bin", TokenType::uint16);
  const Sampler sampler(tokens->size(), {64, options.rows, options.accumulate, Order::sequential, 0});
  Trace trace;
  Recorder recorder;
  run_ranks(ranks, kind, [&](std::shared_ptr<Transport> transport) {
    EngineOptions engine_options;
    engine_options.strategy = options.strategy;
    engine_options.reshard_after_forward = options.reshard;
    engine_options.summing =
        options.accumulate == 1 || options.between == Gradients::hold ? Summing::in_place : Summing::apart;
    engine_options.optimizer = {1e-3, 0.9, 0.95, 1e-8, 0.1};
    const auto model = unit_llama(config);
    Engine engine(model, transport, engine_options, source);
    const double scale = 1.0 / static_cast<double>(options.rows * options.accumulate * 64);
    for (int64_t step = 0; step < options.steps; ++step) {
      double loss = 0;
      for (const MicroBatch& micro : plan_step(sampler, step, 0, transport->rank(), ranks)) {
        engine.set_gradients(micro.accumulation + 1 == options.accumulate ? Gradients::reduce : options.between);
        const Batch batch = read_batch(*tokens, sampler, step, micro.accumulation, micro.rows);
        const double weight = micro.counts ? scale : 0;
        const at::Tensor value = engine.forward([&] { return model->loss(batch.tokens, batch.targets, weight); });
        engine.backward(value);
        loss += value.item<double>();
      }
      const StepReport report = engine.step(1.0, {&loss, 1});
      if (transport->rank() == 0) {
        trace.norms.push_back(report.grad_norm);
        double sum = 0;
        for (const double part : report.shared) sum += part;
        trace.losses.push_back(sum);
      }
    }
    recorder.add(engine.shards(), trace);
  });
  return trace;
}

void expect_reference(const Trace& trace) {
  const auto reference = nlohmann::json::parse(std::ifstream(kTiny + "/losses.json"));
  for (size_t step = 0; step < trace.losses.size(); ++step) {
    const double loss = reference["losses"][step], norm = reference["gradient_norms"][step];
    EXPECT_NEAR(trace.losses[step], loss, 2e-6 * loss) << "step " << step;
    EXPECT_NEAR(trace.norms[step], norm, 2e-6 * norm) << "step " << step;
  }
  const SafetensorsFile file(kTiny + "/final.safetensors");
  for (const auto& [name, stored] : file.header().tensors) {
    const auto& weights = trace.weights.at(name);
    std::vector<float> expected(weights.size());
    const int64_t rows = stored.shape[0];
    file.read_rows({name, 0, rows, static_cast<int64_t>(weights.size()) / rows}, expected.data());
    for (size_t i = 0; i < weights.size(); ++i) ASSERT_NEAR(weights[i], expected[i], 1e-5) << name << " " << i;
  }
}

constexpr const char* kStrategies[] = {"ddp", "zero1", "zero2", "zero3"};

class AtRanks : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Llama, AtRanks, ::testing::Values(1, 2, 3, 4));

TEST_P(AtRanks, EveryStrategyAndTransportGivesTheReferenceAndTheSameBits) {
  std::optional<Trace> first;
  for (const char* strategy : kStrategies) {
    for (const Kind kind : kKinds) {
      const Trace trace = train(GetParam(), kind, {.strategy = strategy});
      SCOPED_TRACE(fmt::format("{} over {}", strategy, name_of(kind)));
      expect_reference(trace);
      if (!first) first = trace;
      EXPECT_TRUE(trace == *first);
    }
  }
}

TEST_P(AtRanks, AccumulationGivesTheSameBitsForEveryStrategy) {
  for (const Gradients between : {Gradients::reduce, Gradients::hold}) {
    std::optional<Trace> first;
    for (const char* strategy : kStrategies) {
      for (const Kind kind : {Kind::threads, Kind::host}) {
        const Trace trace =
            train(GetParam(), kind, {.strategy = strategy, .rows = 4, .accumulate = 3, .between = between, .steps = 4});
        if (!first) first = trace;
        EXPECT_TRUE(trace == *first) << strategy << " over " << name_of(kind);
      }
    }
  }
}

TEST(Llama, AccumulationIsTheSameStepInOtherPieces) {
  // 3 x 4 rows or 12 rows: one batch; only the order of additions differs.
  const Trace whole = train(2, Kind::host, {.rows = 12, .steps = 5});
  const Trace pieces = train(2, Kind::host, {.rows = 4, .accumulate = 3, .steps = 5});
  for (size_t i = 0; i < whole.losses.size(); ++i) {
    EXPECT_NEAR(pieces.losses[i], whole.losses[i], 2e-6 * whole.losses[i]);
    EXPECT_NEAR(pieces.norms[i], whole.norms[i], 2e-6 * whole.norms[i]);
  }
}

TEST(Llama, WhenUnitsReshardDoesNotChangeABit) {
  const Trace first = train(3, Kind::threads, {.steps = 4});
  for (const ReshardPolicy reshard : {ReshardPolicy::never, ReshardPolicy::all})
    for (const Kind kind : kKinds) EXPECT_TRUE(train(3, kind, {.reshard = reshard, .steps = 4}) == first);
}

TEST(Llama, TiedHeadTrainsTheSameEverywhere) {
  // On one rank there is nothing to reduce: it is the plain order of additions.
  const Trace one = train(1, Kind::threads, {.steps = 4, .head = OutputHead::tied});
  EXPECT_EQ(one.weights.count("lm_head.weight"), 0U);
  for (const char* strategy : kStrategies) {
    const Trace two = train(2, Kind::host, {.strategy = strategy, .steps = 4, .head = OutputHead::tied});
    for (size_t i = 0; i < one.losses.size(); ++i) EXPECT_NEAR(two.losses[i], one.losses[i], 2e-6 * one.losses[i]);
  }
}

TEST(Llama, RanksWithoutRowsOfTheirOwnDoNotMatter) {
  // Two rows: a third and a fourth rank compute one again, with weight 0, and change no bit.
  const Trace two = train(2, Kind::threads, {.rows = 2, .steps = 3});
  for (const char* strategy : kStrategies)
    for (const int ranks : {3, 4})
      EXPECT_TRUE(train(ranks, Kind::threads, {.strategy = strategy, .rows = 2, .steps = 3}) == two)
          << strategy << " on " << ranks;
}

}  // namespace
}  // namespace sherd::testing
