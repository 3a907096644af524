// Muon: for every strategy and number of ranks the bits of the unsharded model.
#include <gtest/gtest.h>

#include <set>

#include "tests/engine/plain_training.h"
#include "tests/support/process_maps.h"

namespace sherd::testing {
namespace {

class MuonTraining : public ::testing::TestWithParam<RankCase> {};
INSTANTIATE_TEST_SUITE_P(All, MuonTraining, ::testing::ValuesIn(training_cases()), rank_case_name);

EngineOptions muon_options(const std::string& strategy, MuonScale scale = MuonScale::match_adamw) {
  EngineOptions options = clipping(strategy);
  options.muon = MuonOptions{.scale = scale};
  options.not_muon = {"entry"};
  return options;
}

/// Matrices of 2 to 64 rows: some ranks have none of a few.
void expect_unsharded_bits(const RankCase& c, const EngineOptions& options, int64_t width, int64_t hidden) {
  expect_same_training(
      c, options, [&] { return std::make_shared<ModelImpl<BlockImpl>>(width, hidden, 2); },
      [&] { return std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(width, hidden, 2); },
      [&](auto& model, int rank, int step) {
        return model.forward(training_input(rank, step, {3, width})).to(at::kFloat).sum() * 0.01;
      });
}

TEST_P(MuonTraining, HasTheUnshardedBits) {
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    SCOPED_TRACE(strategy);
    expect_unsharded_bits(GetParam(), muon_options(strategy), 6, 10);
    expect_unsharded_bits(GetParam(), muon_options(strategy, MuonScale::original), 7, 2);
    expect_unsharded_bits(GetParam(), muon_options(strategy), 33, 64);
  }
}

TEST_P(MuonTraining, HasTheUnshardedBitsInMixedPrecision) {
  for (const auto master : {Master::split, Master::fp32, Master::stochastic}) {
    EngineOptions options = muon_options("zero3");
    options.precision = Precision{at::kFloat, at::kBFloat16, at::kFloat, master, {"*norm*", "*bias"}};
    options.moments = MomentType::eight_bits;  // of `entry`
    expect_unsharded_bits(GetParam(), options, 256, 48);
  }
}

TEST(MuonTrainingHybrid, HasTheUnshardedBits) {
  for (const auto kind : {Kind::threads, Kind::host}) {
    EngineOptions options = muon_options("hsdp");
    options.replicate = 2;
    expect_unsharded_bits({kind, 4}, options, 7, 10);
  }
}

/// Of all ranks, which are threads here.
std::set<uint64_t> shared_files(Transport& transport) {
  std::set<uint64_t> files;
  barrier(transport);
  for (const auto& mapping : mappings_of("memfd")) files.insert(mapping.inode);
  barrier(transport);
  return files;
}

TEST(MuonMemory, IsOneMomentumAndNothingBetweenSteps) {
  run_ranks(2, Kind::host, [](std::shared_ptr<Transport> transport) {
    const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(64, 128, 2);
    Engine engine(model, transport, muon_options("zero3"), source_of(values_of(*model)));
    int64_t matrices = 0, others = 0;
    for (const auto& shard : engine.shards())
      (shard.sizes.size() == 2 && shard.fqn != "entry" ? matrices : others) += shard.values.numel();
    EXPECT_NEAR(static_cast<double>(engine.ledger().total(MemoryKind::moments)),
                static_cast<double>(4 * matrices + 8 * others), 1024);
    const int64_t before = engine.ledger().total(MemoryKind::communication);
    engine.backward(engine.forward([&] { return model->forward(training_input(0, 0, {2, 64})).sum() * 0.01; }));
    const std::set<uint64_t> mapped = shared_files(*transport);
    engine.step();
    EXPECT_EQ(engine.ledger().total(MemoryKind::communication), before);
    EXPECT_GE(engine.ledger().peak(MemoryKind::communication), before + 2 * 4 * 64 * 128);
    EXPECT_EQ(shared_files(*transport), mapped) << "what the transport keeps between exchanges is given back";
  });
}

}  // namespace
}  // namespace sherd::testing
