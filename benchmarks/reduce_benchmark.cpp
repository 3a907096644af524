// Reduce-scatter on one host against its bound: S bytes of gradients on each of N ranks, of which each rank sums its
// N-th part over all. At least (N + 1) S bytes move: N S are read and S written. How fast memory does that is measured
// by plain loops over memory of their own that read N streams and write one past the caches, on all ranks at once.
// Also Gloo's reduce-scatter and all-reduce. All take turns, the slowest rank counts, medians are reported.
//
//   bench_reduce [--ranks N] [--mib 16,64,256] [--rounds R] [--skip-gloo]
#include <emmintrin.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include "benchmarks/pinned_ranks.h"
#include "sherd/base/error.h"
#include "sherd/comm/connect.h"
#include "sherd/comm/gloo_backend.h"
#include "sherd/memory/buffer.h"
#include "sherd/shard/store.h"

namespace {

using sherd::bench::Contestant;

struct Options {
  int ranks = sherd::bench::core_count();
  std::vector<int64_t> mib = {16, 64, 256};
  int rounds = 15;
  bool skip_gloo = false;
};

/// The bound: `sources` streams are read, one is written, all private to the rank.
class PlainLoops {
 public:
  PlainLoops(size_t sources, int64_t elements) : elements_(static_cast<size_t>(elements)) {
    for (size_t k = 0; k < sources; ++k)
      sources_.push_back(sherd::allocate(elements, at::kCPU).fill_(static_cast<double>(k + 1)));
    out_ = sherd::allocate(elements, at::kCPU).zero_();
  }

  void run() {
    std::vector<const float*> from;
    for (const auto& source : sources_) from.push_back(source.const_data_ptr<float>());
    float* out = out_.mutable_data_ptr<float>();
    for (size_t i = 0; i + 16 <= elements_; i += 16) {
      __m128 sum[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
      for (const float* source : from)
        for (size_t k = 0; k < 4; ++k) sum[k] = _mm_add_ps(sum[k], _mm_load_ps(source + i + 4 * k));
      for (size_t k = 0; k < 4; ++k) _mm_stream_ps(out + i + 4 * k, sum[k]);
    }
    _mm_sfence();
  }

 private:
  size_t elements_;
  std::vector<at::Tensor> sources_;
  at::Tensor out_;
};

/// sherd's reduce-scatter of one group whose gradients lie in the ranks' slots.
class Reduction {
 public:
  Reduction(sherd::Transport& transport, int64_t elements, sherd::Summing summing) {
    sherd::StorePlan plan{sherd::find_strategy("zero3"), summing, at::kCPU, {}};
    plan.groups.push_back({.layout = sherd::lay_out("unit", {{"weight", {elements}}}, transport.size()),
                           .slot = sherd::SlotKind::dedicated});
    store_ = sherd::make_store(transport, ledger_, plan);
    for (int r = 1; r <= transport.size(); ++r) expected_ += static_cast<float>(r);
    mine_ = static_cast<float>(transport.rank() + 1);
  }

  void open() { slot_ = store_->open_slot(0); }
  void fill() { slot_.fill_(mine_); }
  void run() {
    store_->contribute(0);
    store_->reduce(0, sherd::Round::first, sherd::Patience::wait);
  }
  void check() {
    open();
    fill();
    run();
    SHERD_CHECK(store_->gradient(0).eq(expected_).all().item<bool>());
  }

 private:
  sherd::Ledger ledger_;
  std::unique_ptr<sherd::Store> store_;
  at::Tensor slot_;
  float mine_ = 0, expected_ = 0;
};

/// One size on this rank; rank 0 prints its rows of the table.
void measure(const Options& options, sherd::Transport& transport, c10d::Backend* gloo, int64_t mib) {
  const int64_t elements = (mib << 20) / static_cast<int64_t>(sizeof(float)), ranks = transport.size();
  PlainLoops loops(static_cast<size_t>(ranks), elements / ranks);
  Reduction apart(transport, elements, sherd::Summing::apart), in_place(transport, elements, sherd::Summing::in_place);
  apart.check();
  in_place.check();
  at::Tensor whole = at::zeros({elements}), part = at::zeros({elements / ranks});
  std::vector<at::Tensor> wholes = {whole};

  std::vector<Contestant> contestants = {
      {"bound", nullptr, [&] { loops.run(); }},
      {"sherd", [&] { apart.open(); }, [&] { apart.run(); }},
      {"sherd, into its slot", [&] { in_place.open(); }, [&] { in_place.run(); }},
  };
  if (gloo != nullptr) {
    contestants.push_back(
        {"Gloo reduce-scatter", nullptr, [&] { gloo->_reduce_scatter_base(part, whole, {})->wait(); }});
    contestants.push_back({"Gloo all-reduce", nullptr, [&] { gloo->allreduce(wholes, {})->wait(); }});
  }
  const auto seconds = take_turns(transport, contestants, options.rounds);
  if (transport.rank() != 0) return;
  const double bound = sherd::bench::median(seconds[0]), bytes = static_cast<double>((ranks + 1) * (mib << 20));
  for (size_t c = 0; c < contestants.size(); ++c) {
    const double time = sherd::bench::median(seconds[c]);
    std::printf("| %ld | %s | %.2f | %.2f | %.1f | %.2f |\n", mib, contestants[c].name.c_str(), 1e3 * time,
                1e3 * *std::min_element(seconds[c].begin(), seconds[c].end()), 1e-9 * bytes / time, time / bound);
  }
  std::fflush(stdout);
}

void run_rank(const Options& options, const sherd::World& world) {
  const auto transport = sherd::connect(world, "host");
  c10::intrusive_ptr<c10d::Backend> gloo;
  if (!options.skip_gloo) gloo = sherd::gloo_backend(sherd::with_fresh_store(world, "gloo"));
  for (const int64_t mib : options.mib) measure(options, *transport, gloo.get(), mib);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Reduce-scatter on one host against its bound");
  app.add_option("--ranks", options.ranks, "Processes, each pinned to a core")->check(CLI::Range(2, 256));
  app.add_option("--mib", options.mib, "Gradients of a rank, in MiB")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--rounds", options.rounds, "Rounds that count")->check(CLI::PositiveNumber);
  app.add_flag("--skip-gloo", options.skip_gloo, "Only sherd and the bound");
  CLI11_PARSE(app, argc, argv);
  std::printf("Reduce-scatter on %d ranks, %d cores, medians of %d rounds; GB/s of (ranks + 1) x size\n\n",
              options.ranks, sherd::bench::core_count(), options.rounds);
  std::printf("| MiB a rank | what | ms | least | GB/s | / bound |\n|---|---|---|---|---|---|\n");
  return sherd::bench::run_pinned_ranks(options.ranks, [&](const sherd::World& world) { run_rank(options, world); });
}
