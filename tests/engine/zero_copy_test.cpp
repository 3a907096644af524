// One host, one copy, seen from a model: each parameter of every rank is the same place in the same file, an owner's
// write is in its peers' parameters at once, and whole training steps send no byte.
#include <gtest/gtest.h>

#include "sherd/engine/engine.h"
#include "tests/shard/toy_model.h"
#include "tests/support/engine_options.h"
#include "tests/support/process_maps.h"
#include "tests/support/ranks.h"
#include "tests/support/socket_trap.h"

namespace sherd::testing {
namespace {

using Model = ModelImpl<UnitModule<BlockImpl>>;

/// Device, inode and offset in the file of a parameter's memory: the same numbers are the same memory.
std::vector<double> places_of(Model& model) {
  std::vector<double> places;
  for (const auto& parameter : model.parameters()) {
    const auto address = reinterpret_cast<uintptr_t>(parameter.const_data_ptr());
    const MapsLine line = mapping_at(parameter.const_data_ptr());
    EXPECT_EQ(line.permissions, "r--p");  // a write would go to a copy of the page, and be found
    unsigned major = 0, minor = 0;
    EXPECT_EQ(std::sscanf(line.device.c_str(), "%x:%x", &major, &minor), 2);
    places.push_back(major * 65536.0 + minor);
    places.push_back(static_cast<double>(line.inode));
    places.push_back(static_cast<double>(line.offset + (address - line.begin)));
  }
  return places;
}

class ZeroCopyModel : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Strategies, ZeroCopyModel, ::testing::Values("ddp", "zero1", "zero2", "zero3"));

TEST_P(ZeroCopyModel, ParametersAreOneCopyAndStepsSendNothing) {
  constexpr int kRanks = 3;
  const std::string strategy = GetParam();
  const auto statuses = run_processes(kRanks, [&](const World& world) {
    std::shared_ptr<HostSegment> host = HostSegment::connect(world);
    ASSERT_NE(host, nullptr);
    const auto model = std::make_shared<Model>(64, 96, 3);
    EngineOptions options = with_strategy(strategy);
    options.clip = std::nullopt;
    Engine engine(model, host, options,
                  [](const RowRange& range, float* out) { std::fill_n(out, range.rows * range.row_elements, 0.01F); });
    const SocketTrap trap;
    const auto step = [&] {
      engine.backward(engine.forward([&] { return model->forward(at::ones({4, 64})).sum(); }));
      engine.step();
    };
    step();

    // Inside the units' forward, where zero3 has its parameters too.
    std::vector<double> places;
    engine.forward([&] {
      const at::Tensor y = model->forward(at::ones({4, 64}));
      for (auto& unit : engine.sharded_model().groups()) unit->unshard();
      places = places_of(*model);
      return y;
    });
    const std::vector<double> all = host->exchange(places);
    for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], places[i % places.size()]) << "value " << i;

    // Each owner writes its first row of `entry`; every rank sees it through its own parameter, without a call.
    for (const auto& shard : engine.shards())
      if (shard.fqn == "entry")
        shard.values.narrow(0, 0, shard.row_elements).fill_(100.0F + static_cast<float>(world.rank));
    barrier(*host);
    for (int r = 0; r < kRanks; ++r) {
      const Rows rows = rows_of_rank(64, r, kRanks);
      EXPECT_EQ(model->entry.const_data_ptr<float>()[rows.first * 64], 100.0F + static_cast<float>(r));
    }
    for (auto& group : engine.sharded_model().groups()) group->reshard();
    step();
    EXPECT_EQ(trap.caught(), 0);
    EXPECT_EQ(host->bytes_sent(), 0);
  });
  for (const int status : statuses) EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace sherd::testing
