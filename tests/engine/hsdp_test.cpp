// hsdp on meshes of any shape: one norm, a share of the memory, and errors. (Its bits: model_shapes_test.cpp.)
#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "sherd/base/error.h"
#include "tests/engine/plain_training.h"

namespace sherd::testing {
namespace {

TEST(Hsdp, ClipsByTheNormOfTheWholeModel) {
  for (const Kind kind : kKinds) {
    std::mutex mutex;
    std::set<double> norms;
    ModelImpl<BlockImpl> plain;
    const Values start = values_of(plain);
    for (const int replicate : {1, 2, 4}) {
      run_ranks(4, kind, [&](std::shared_ptr<Transport> transport) {
        const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
        EngineOptions options;
        options.strategy = "hsdp";
        options.replicate = replicate;
        Engine engine(model, transport, options, source_of(start));
        engine.backward(engine.forward([&] { return model->forward(training_input(transport->rank(), 0)).sum(); }));
        const double norm = engine.step().grad_norm;
        const std::lock_guard lock(mutex);
        norms.insert(norm);
      });
    }
    EXPECT_EQ(norms.size(), 1U);
  }
}

TEST(Hsdp, HoldsAShareOfTheParametersOnEachReplica) {
  run_ranks(4, Kind::threads, [](std::shared_ptr<Transport> transport) {
    const auto bytes = [&](const std::string& strategy, int replicate) {
      ModelImpl<BlockImpl> plain(64, 96);
      const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>(64, 96);
      EngineOptions options = clipping(strategy);
      options.replicate = replicate;
      const Engine engine(model, transport, options, source_of(values_of(plain)));
      return static_cast<double>(const_cast<Engine&>(engine).ledger().total(MemoryKind::parameters));
    };
    const double whole = bytes("ddp", 1);
    EXPECT_NEAR(bytes("hsdp", 1) / whole, 0.25, 0.03);
    EXPECT_NEAR(bytes("hsdp", 2) / whole, 0.5, 0.03);
    EXPECT_NEAR(bytes("hsdp", 4) / whole, 1, 0.01);
  });
}

TEST(Hsdp, ReplicasAreItsOwn) {
  EngineOptions options = clipping("zero3");
  options.replicate = 2;
  EXPECT_THROW(options.validate(), ConfigError);
  run_ranks(3, Kind::threads, [](std::shared_ptr<Transport> transport) {
    EngineOptions options = clipping("hsdp");
    options.replicate = 2;  // of three ranks
    ModelImpl<BlockImpl> plain;
    const auto model = std::make_shared<ModelImpl<UnitModule<BlockImpl>>>();
    EXPECT_THROW(Engine(model, transport, options, source_of(values_of(plain))), ConfigError);
  });
}

}  // namespace
}  // namespace sherd::testing
