// A c10d backend that moves a device's tensors only, and the device: tensors that the test says are its own.
#pragma once

#include <ATen/ops/empty.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <mutex>
#include <set>
#include <vector>

#include "sherd/base/error.h"

namespace sherd::testing {

/// Tensors that count as a device's. Their memory is the host's, so that tests can look.
class PretendedDevice {
 public:
  at::Tensor empty(int64_t elements, at::ScalarType type = at::kFloat) {
    at::Tensor tensor = at::empty({elements}, type);
    const std::lock_guard lock(mutex_);
    there_.insert(tensor.storage().data());
    kept_.push_back(tensor);  // so that nobody else gets its address
    return tensor;
  }
  bool has(const at::Tensor& tensor) const {
    const std::lock_guard lock(mutex_);
    return there_.contains(tensor.storage().data());
  }

 private:
  mutable std::mutex mutex_;
  std::set<const void*> there_;
  std::vector<at::Tensor> kept_;
};

/// Wraps a backend that moves any tensor; refuses those that are not the device's.
class DeviceBackend : public c10d::Backend {
 public:
  using Inner = c10::intrusive_ptr<c10d::Backend>;
  using AWork = c10::intrusive_ptr<c10d::Work>;

  DeviceBackend(Inner inner, const PretendedDevice& device)
      : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)), device_(device) {}

  const std::string getBackendName() const override { return "device"; }
  void abort() override { inner_->abort(); }

  AWork _allgather_base(at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions& options) override {
    check(out, in);
    return inner_->_allgather_base(out, in, options);
  }
  AWork alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_counts,
                      std::vector<int64_t>& in_counts, const c10d::AllToAllOptions& options) override {
    check(out, in);
    return inner_->alltoall_base(out, in, out_counts, in_counts, options);
  }

 private:
  void check(const at::Tensor& out, const at::Tensor& in) const {
    TORCH_CHECK(device_.has(out) && device_.has(in), "no backend for tensors of the cpu");
  }

  Inner inner_;
  const PretendedDevice& device_;
};

}  // namespace sherd::testing
