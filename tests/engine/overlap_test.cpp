// On a transport whose collectives take long, gathers are under way before they are needed, and reductions while
// backward goes on. Shown by the order of events, not by time.
#include <ATen/ops/linear.h>
#include <gtest/gtest.h>

#include "sherd/engine/engine.h"
#include "tests/shard/toy_model.h"
#include "tests/support/delayed_backend.h"
#include "tests/support/engine_options.h"
#include "tests/support/ranks.h"

namespace sherd::testing {
namespace {

using std::chrono::milliseconds;

constexpr int kRanks = 2, kBlocks = 4;

/// Every parameter gets a gradient: a unit with one that gets none is complete only when backward is.
struct WholeBlockImpl : torch::nn::Module {
  WholeBlockImpl(int64_t width, int64_t hidden) {
    up = register_parameter("up", 0.3 * at::randn({hidden, width}));
    down = register_parameter("down", 0.3 * at::randn({width, hidden}));
  }
  at::Tensor forward(const at::Tensor& x) { return x + at::linear(at::gelu(at::linear(x, up)), down); }
  at::Tensor up, down;
};

class OverlapTest : public ::testing::Test {
 protected:
  using Model = ModelImpl<UnitModule<WholeBlockImpl>>;

  /// Runs two whole steps (the first one learns the order of the units), then body(engine, model, events) on each rank.
  static void run(const std::string& strategy, milliseconds delay,
                  const std::function<void(Engine&, Model&, Events&)>& body) {
    ModelImpl<WholeBlockImpl> original(6, 10, kBlocks);
    const Values start = values_of(original);
    const auto store = c10::make_intrusive<c10d::HashStore>();
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < kRanks; ++rank)
      threads.emplace_back([&, rank] {
        at::set_num_threads(1);
        Events events;
        std::shared_ptr<Transport> transport;
        try {
          const World world{.rank = rank, .size = kRanks, .local_rank = rank, .store = store};
          transport = std::make_shared<C10dTransport>(
              world,
              [&](const World& all) { return c10::make_intrusive<DelayedBackend>(gloo_backend(all), delay, events); },
              "gloo");
          const auto model = std::make_shared<Model>(6, 10, kBlocks);
          Engine engine(model, transport, with_strategy(strategy), source_of(start));
          for (int step = 0; step < 2; ++step) {
            Events unused;
            engine.backward(forward(engine, *model, unused));
            engine.step();
          }
          body(engine, *model, events);
        } catch (const std::exception& error) {
          ADD_FAILURE() << error.what();
          if (transport) transport->abort(error.what());
        }
      });
  }

  /// The model's forward, which tells when each block's forward and backward are done.
  static at::Tensor forward(Engine& engine, Model& model, Events& events) {
    return engine.forward([&] {
      at::Tensor x = at::linear(at::linear(at::ones({5, 6}), model.tied), model.entry);
      for (int i = 0; i < kBlocks; ++i) {
        x.register_hook([&events, i](const at::Tensor&) { events.add(fmt::format("backward {}", i)); });
        x = model.blocks[static_cast<size_t>(i)]->forward(x);
        events.add(fmt::format("forward {}", i));
      }
      return at::linear(x, model.tied).sum();
    });
  }

  /// How many `event`s come before the first `mark` that follows event number `from`.
  static int64_t count(const std::vector<std::string>& list, const std::string& event, const std::string& mark,
                       size_t from) {
    const auto begin = list.begin() + static_cast<int64_t>(from);
    const auto end = std::find(begin, list.end(), mark);
    EXPECT_NE(end, list.end()) << mark;
    return std::count(begin, end, event);
  }
};

TEST_F(OverlapTest, GathersAreStartedBeforeTheyAreNeeded) {
  run("zero3", milliseconds(5), [](Engine& engine, Model& model, Events& events) {
    const size_t from = events.list().size();
    const at::Tensor loss = forward(engine, model, events);
    const size_t middle = events.list().size();
    engine.backward(loss);
    const auto list = events.list();
    // The root's gather comes first. Without prefetching, block i is done after i + 2 gathers have been started.
    for (int i = 0; i + 1 < kBlocks; ++i)
      EXPECT_EQ(count(list, "all_gather starts", fmt::format("forward {}", i), from), i + 3) << "block " << i;
    // In backward, which begins with the last block: that of block i is done when those below it are gathered or on
    // the way.
    for (int i = kBlocks - 1; i > 0; --i) {
      const auto started = count(list, "all_gather starts", fmt::format("backward {}", i), middle);
      const auto first = count(list, "all_gather starts", fmt::format("backward {}", kBlocks - 1), middle);
      EXPECT_EQ(started - first, kBlocks - 1 - i) << "block " << i;
      EXPECT_GE(first, 2) << "the last block's own, and that of the one below it";
    }
  });
}

TEST_F(OverlapTest, ReductionsGoOnWhileBackwardDoes) {
  // These gather nothing in backward: what they wait for can only be reductions.
  for (const char* strategy : {"ddp", "zero1", "zero2"}) {
    SCOPED_TRACE(strategy);
    run(strategy, milliseconds(150), [](Engine& engine, Model& model, Events& events) {
      const at::Tensor loss = forward(engine, model, events);
      const size_t from = events.list().size();
      engine.backward(loss);
      const auto list = events.list();
      const std::string next = fmt::format("backward {}", kBlocks - 2);
      EXPECT_GE(count(list, "all_to_all starts", next, from), 1) << "the last block's reduction has begun";
      EXPECT_EQ(count(list, "all_to_all ends", next, from), 0) << "and backward did not wait for it";
    });
  }
}

/// How many collectives are under way at once, at most.
int64_t most_at_once(std::span<const std::string> events) {
  int64_t now = 0, most = 0;
  for (const auto& event : events) {
    now += event.ends_with("starts") ? 1 : event.ends_with("ends") ? -1 : 0;
    most = std::max(most, now);
  }
  return most;
}

TEST_F(OverlapTest, AGatherAndAReductionAreUnderWayAtOnce) {
  // In zero3's backward: the gather of the next block while the reduction of the last one goes on.
  run("zero3", milliseconds(40), [&](Engine& engine, Model& model, Events& events) {
    const at::Tensor loss = forward(engine, model, events);
    const size_t from = events.list().size();
    engine.backward(loss);
    engine.step();
    const auto list = events.list();
    const std::span own(list.begin() + static_cast<int64_t>(from), list.end());
    EXPECT_EQ(std::count(own.begin(), own.end(), "all_to_all starts"), kBlocks + 1)
        << "a reduction for each block and the root";
    EXPECT_EQ(std::count(own.begin(), own.end(), "all_to_all ends"), kBlocks + 1) << "and the step waits for all";
    EXPECT_GE(most_at_once(own), 2);
  });
}

}  // namespace
}  // namespace sherd::testing
