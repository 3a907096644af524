// The wheel's libtorch_cpu holds Gloo, but not its headers: Debian's libgloo-dev has them.
#define USE_C10D_GLOO
#include "sherd/comm/gloo_backend.h"

#include <csignal>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "sherd/base/error.h"

namespace sherd {
namespace {

// Gloo writes to connections that may be broken by then: that is an error there, and not the end of this process.
void ignore_broken_pipes() {
  struct sigaction now = {};
  if (sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}

class Gloo : public c10d::ProcessGroupGloo {
 public:
  using ProcessGroupGloo::ProcessGroupGloo;
  using Work = c10::intrusive_ptr<c10d::Work>;

  Work _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    number_next(input.nbytes());
    return ProcessGroupGloo::_allgather_base(output, input, options);
  }

  Work alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_counts,
                     std::vector<int64_t>& input_counts, const c10d::AllToAllOptions& options) override {
    number_next(input.nbytes());
    return ProcessGroupGloo::alltoall_base(output, input, output_counts, input_counts, options);
  }

  // Gloo has no call for this. But when a receive times out, it breaks all connections of the group, and with them
  // whatever waits for data: so we receive what nobody sends, for a millisecond.
  void abort() override {
    constexpr int kUnusedTag = 0x5e4d;
    for (int peer = 0; peer < getSize(); ++peer) {
      if (peer == getRank()) continue;
      try {
        std::vector<at::Tensor> nothing = {at::empty({1}, at::kByte)};
        recv(nothing, peer, kUnusedTag)->wait(std::chrono::milliseconds(1));
      } catch (const std::exception&) {  // The time-out, or the connection was broken already.
      }
    }
  }

 private:
  // Gloo ends the process when a peer sends more than fits. Messages find each other by the number of their collective:
  // with the size in it, those of collectives that differ in size never meet, and both sides wait until they notice.
  void number_next(size_t bytes) {
    const uint64_t hash = (bytes * 0x9e3779b97f4a7c15U) >> 48;
    collectiveCounter_ = static_cast<uint32_t>(started_++ << 16 | hash);
  }

  uint32_t started_ = 0;
};

}  // namespace

c10::intrusive_ptr<c10d::Backend> gloo_backend(const World& world) {
  ignore_broken_pipes();
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(world.timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    auto store = c10::make_intrusive<c10d::PrefixStore>("gloo", world.store);
    return c10::make_intrusive<Gloo>(store, world.rank, world.size, options);
  } catch (const std::exception& error) {
    fault("gloo", "rank {} of {} could not connect: {}", world.rank, world.size, first_line(error.what()));
  }
}

}  // namespace sherd
