// Gradients that travel encoded: what they are summed to, what is sent, and where a codec is refused.
#include "sherd/shard/gradient_exchange.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "sherd/comm/mesh.h"
#include "tests/shard/toy_groups.h"

namespace sherd::testing {
namespace {

at::Tensor rounded(const at::Tensor& values) { return values.to(at::kBFloat16).to(at::kFloat); }

StorePlan encoded_plan(const char* strategy, int ranks, Codec codec) {
  StorePlan plan = toy_plan(find_strategy(strategy), ranks, SlotKind::ring);
  plan.codec = codec;
  return plan;
}

/// One round of group g. Returns the bytes that its contribution sent.
int64_t run_round(Store& store, const StorePlan& plan, Transport& shard, int rank, size_t g, int round) {
  const GroupLayout& layout = plan.groups[g].layout;
  const at::Tensor slot = store.open_slot(g);
  fill_slot(slot, layout, rank, round);
  const int64_t before = shard.bytes_sent();
  store.contribute(g);
  const int64_t sent = shard.bytes_sent() - before;
  store.reduce(g, round == 0 ? Round::first : Round::later, Patience::wait);
  store.finish_round();
  return sent;
}

/// What rounds of `ranks` sum up to, each contribution through `seen`.
std::vector<at::Tensor> sums_of(const GroupLayout& layout, int ranks, int rounds,
                                const std::function<at::Tensor(const at::Tensor&)>& seen) {
  std::vector<at::Tensor> sums;
  for (size_t p = 0; p < layout.parameters.size(); ++p) {
    at::Tensor sum;
    for (int round = 0; round < rounds; ++round) {
      std::vector<at::Tensor> sources;
      for (int r = 0; r < ranks; ++r) sources.push_back(seen(toy_gradient(layout, p, r, round)));
      sum = sum.defined() ? sum + tree(sources) : tree(sources);
    }
    sums.push_back(sum);
  }
  return sums;
}

class EncodedGradients : public ::testing::TestWithParam<RankCase> {};
INSTANTIATE_TEST_SUITE_P(All, EncodedGradients,
                         ::testing::Values(RankCase{Kind::threads, 2}, RankCase{Kind::threads, 3},
                                           RankCase{Kind::gloo, 2}, RankCase{Kind::gloo, 4}, RankCase{Kind::hosts, 4}),
                         rank_case_name);

// The same bits for every strategy and transport: contributions are rounded once, and summed exactly as others are.
TEST_P(EncodedGradients, AreSumsOfRoundedContributions) {
  run_ranks(GetParam().ranks, GetParam().kind, [](Transport& transport) {
    const int ranks = transport.size();
    for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
      Ledger ledger;
      const StorePlan plan = encoded_plan(strategy, ranks, Codec::bf16);
      const auto store = make_store(transport, ledger, plan);
      for (size_t g = 0; g < 4; ++g) {
        for (int round = 0; round < 2; ++round) run_round(*store, plan, transport, transport.rank(), g, round);
        expect_gradient(*store, plan.groups[g].layout, g, sums_of(plan.groups[g].layout, ranks, 2, rounded));
      }
      barrier(transport);
    }
  });
}

TEST_P(EncodedGradients, AreOffByAtMost2ToThe8OfEachContributionAndTakeHalfTheBytes) {
  run_ranks(GetParam().ranks, GetParam().kind, [](Transport& transport) {
    const int ranks = transport.size();
    std::vector<at::Tensor> gradients;
    std::vector<int64_t> sent;
    for (const Codec codec : {Codec::identity, Codec::bf16}) {
      Ledger ledger;
      const StorePlan plan = encoded_plan("zero2", ranks, codec);
      const auto store = make_store(transport, ledger, plan);
      sent.push_back(run_round(*store, plan, transport, transport.rank(), 2, 0));
      gradients.push_back(store->gradient(2).clone());
      barrier(transport);
    }
    const GroupLayout layout = encoded_plan("zero2", ranks, Codec::identity).groups[2].layout;
    EXPECT_EQ(sent[0], layout.shard_elements * 4 * (ranks - 1));
    EXPECT_EQ(2 * sent[1], sent[0]);
    EXPECT_FALSE(at::equal(gradients[0], gradients[1])) << "the codec did nothing";
    const std::vector<at::Tensor> sizes = sums_of(layout, ranks, 1, [](const at::Tensor& g) { return g.abs(); });
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const Rows own = elements_of(layout, p, transport.rank());
      const auto mine = [&](const at::Tensor& gradient) {
        return gradient.narrow(0, layout.parameters[p].shard_offset, own.count);
      };
      // Beside the codec's error, the additions of fp32 round what is a little different.
      const at::Tensor bound = sizes[p].narrow(0, own.first, own.count) * (0x1p-8 + 0x1p-20);
      EXPECT_TRUE(((mine(gradients[1]) - mine(gradients[0])).abs() <= bound).all().item<bool>());
    }
  });
}

// Along both axes of a mesh: what is summed once is not encoded again.
TEST(EncodedGradientsOfAMesh, AreThoseOfOneRow) {
  run_ranks(4, Kind::threads, [](std::shared_ptr<Transport> transport) {
    const Mesh mesh = Mesh::over(4, transport->rank(), 2, 2);
    const auto shard = transport->subgroup(mesh.shard_ranks()), replicas = transport->subgroup(mesh.replicate_ranks());
    Ledger ledger;
    const StorePlan plan = encoded_plan("hsdp", 2, Codec::bf16);
    const auto store = make_store({shard, replicas}, ledger, plan);
    for (size_t g = 0; g < 4; ++g) {
      run_round(*store, plan, *shard, transport->rank(), g, 0);
      expect_gradient(*store, plan.groups[g].layout, g, sums_of(plan.groups[g].layout, 4, 1, rounded));
    }
    barrier(*transport);
  });
}

TEST(EncodedGradientsOfOtherTypes, TravelAsTheyAreBesideFp32) {
  run_ranks(2, Kind::threads, [](Transport& transport) {
    Ledger ledger;
    StorePlan plan = encoded_plan("zero2", 2, Codec::bf16);
    plan.groups[1].type = plan.groups[1].compute = plan.groups[1].reduce = at::kDouble;
    const auto store = make_store(transport, ledger, plan);
    run_round(*store, plan, transport, transport.rank(), 1, 0);
    const auto exact = [](const at::Tensor& gradient) { return gradient.to(at::kDouble); };
    const std::vector<at::Tensor> sums = sums_of(plan.groups[1].layout, 2, 1, exact);
    expect_gradient(*store, plan.groups[1].layout, 1, sums);
  });
}

std::string refusal(Transport& transport, const StorePlan& plan) {
  Ledger ledger;
  try {
    make_store(transport, ledger, plan);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "made";
}

TEST(CodecOfAStore, IsRefusedWhereItWouldDoNothing) {
  run_ranks(1, Kind::threads, [](Transport& transport) {
    EXPECT_EQ(refusal(transport, encoded_plan("zero3", 1, Codec::bf16)),
              "[codec] got bf16 where there is one rank, expected identity: no gradient is sent; try codec identity");
  });
  run_ranks(2, Kind::host, [](Transport& transport) {
    EXPECT_EQ(
        refusal(transport, encoded_plan("zero3", 2, Codec::bf16)),
        "[codec] got bf16 where all ranks share memory, expected identity: no gradient is sent; try codec identity");
  });
  run_ranks(2, Kind::threads, [](Transport& transport) {
    StorePlan plan = encoded_plan("zero3", 2, Codec::bf16);
    for (auto& group : plan.groups) group.reduce = at::kBFloat16;
    EXPECT_EQ(refusal(transport, plan),
              "[codec] got bf16 with gradients that are reduced in BFloat16, expected fp32 ones; try codec identity");
  });
}

}  // namespace
}  // namespace sherd::testing
