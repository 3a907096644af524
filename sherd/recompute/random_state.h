// The state of the default random generators, to run something again with the same random numbers (dropout).
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <vector>

namespace sherd {

/// The state of the CPU's default generator, and of those of the devices in use when it was taken. About 5 KiB.
class RandomState {
 public:
  /// As it is now; `devices` besides the CPU.
  static RandomState now(const std::vector<at::Device>& devices);
  /// Sets the generators to this state.
  void restore() const;

 private:
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

/// Runs its life under `state`, then puts back what was there.
class RandomScope {
 public:
  RandomScope(const RandomState& state, const std::vector<at::Device>& devices) : before_(RandomState::now(devices)) {
    state.restore();
  }
  ~RandomScope() { before_.restore(); }
  RandomScope(const RandomScope&) = delete;
  RandomScope& operator=(const RandomScope&) = delete;

 private:
  RandomState before_;
};

}  // namespace sherd
