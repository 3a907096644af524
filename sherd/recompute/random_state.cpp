#include "sherd/recompute/random_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <mutex>

namespace sherd {

RandomState RandomState::now(const std::vector<at::Device>& devices) {
  RandomState state;
  const auto add = [&](const at::Generator& generator) {
    at::Generator kept = generator;
    const std::lock_guard lock(kept.mutex());
    state.states_.emplace_back(kept, kept.get_state());
  };
  add(at::detail::getDefaultCPUGenerator());
  for (const at::Device device : devices)
    if (!device.is_cpu()) add(at::globalContext().defaultGenerator(device));
  return state;
}

void RandomState::restore() const {
  for (const auto& [generator, state] : states_) {
    at::Generator target = generator;
    const std::lock_guard lock(target.mutex());
    target.set_state(state);
  }
}

}  // namespace sherd
