// The wheel's libtorch_cpu holds Gloo, but not its headers: Debian's libgloo-dev has them.
#define USE_C10D_GLOO
#include "sherd/comm/gloo_backend.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "sherd/base/error.h"

namespace sherd {

c10::intrusive_ptr<c10d::Backend> gloo_backend(const World& world) {
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(world.timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    auto store = c10::make_intrusive<c10d::PrefixStore>("sherd/gloo", world.store);
    return c10::make_intrusive<c10d::ProcessGroupGloo>(store, world.rank, world.size, options);
  } catch (const std::exception& error) {
    fault("gloo", "rank {} of {} could not connect: {}", world.rank, world.size, error.what());
  }
}

}  // namespace sherd
