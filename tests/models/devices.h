// The devices that tests of device-generic code run on.
#pragma once

#include <ATen/Context.h>

#include <vector>

namespace sherd {

inline std::vector<at::Device> test_devices() {
  std::vector<at::Device> devices{at::kCPU};
  if (at::hasCUDA()) devices.emplace_back(at::kCUDA);
  return devices;
}

}  // namespace sherd
