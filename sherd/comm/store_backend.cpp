#include "sherd/comm/store_backend.h"

#include <fmt/format.h>

#include <torch/csrc/distributed/c10d/Work.hpp>

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr uint64_t kUnderWay = 2;  // gathers of a rank, at most

}  // namespace

class StoreBackend::Gather : public c10d::Work {
 public:
  Gather(const World& world, uint64_t number, std::shared_ptr<std::atomic<bool>> aborted, at::Tensor out, int64_t bytes)
      : world_(world), number_(number), aborted_(std::move(aborted)), out_(std::move(out)), bytes_(bytes) {}

  static std::string key(uint64_t number, int rank) { return fmt::format("{}/{}", number, rank); }

  bool isCompleted() override { return over_; }
  bool isSuccess() const override { return over_ && error_ == nullptr; }

  bool wait(std::chrono::milliseconds timeout) override {
    if (error_) std::rethrow_exception(error_);
    if (over_) return true;
    std::vector<std::string> keys;
    for (int r = 0; r < world_.size; ++r) keys.push_back(key(number_, r));
    if (*aborted_) end_with(std::make_exception_ptr(FaultError("[store] a gather was broken off")));
    try {
      world_.store->wait(keys, timeout == kNoTimeout ? world_.timeout : timeout);
    } catch (const c10::DistNetworkError&) {
      end_with(std::current_exception());  // the store is gone
    }                                      // Any other error: not all have come in time.
    try {
      take(keys);
    } catch (...) {
      end_with(std::current_exception());
    }
    over_ = true;
    return true;
  }

 private:
  [[noreturn]] void end_with(std::exception_ptr error) {
    error_ = std::move(error);
    over_ = true;
    std::rethrow_exception(error_);
  }

  void take(const std::vector<std::string>& keys) {
    auto* to = static_cast<uint8_t*>(out_.mutable_data_ptr());
    int64_t rank = 0;
    for (const auto& bytes : read(keys)) {
      if (static_cast<int64_t>(bytes.size()) != bytes_)
        fault("store", "got {} bytes from rank {}, expected {}", bytes.size(), rank, bytes_);
      std::copy(bytes.begin(), bytes.end(), to + rank++ * bytes_);
    }
    // Who has begun this one has read what was two before.
    if (number_ >= kUnderWay) world_.store->deleteKey(key(number_ - kUnderWay, world_.rank));
  }

  std::vector<std::vector<uint8_t>> read(const std::vector<std::string>& keys) {
    if (world_.store->hasExtendedApi()) return world_.store->multiGet(keys);
    std::vector<std::vector<uint8_t>> all;
    for (const auto& key : keys) all.push_back(world_.store->get(key));
    return all;
  }

  World world_;
  uint64_t number_;
  std::shared_ptr<std::atomic<bool>> aborted_;
  at::Tensor out_;
  int64_t bytes_;
  bool over_ = false;
  std::exception_ptr error_;
};

StoreBackend::StoreBackend(const World& world) : Backend(world.rank, world.size), world_(world) {}

c10::intrusive_ptr<c10d::Work> StoreBackend::_allgather_base(at::Tensor& out, at::Tensor& in,
                                                             const c10d::AllgatherOptions&) {
  const auto bytes = static_cast<int64_t>(in.nbytes());
  SHERD_CHECK(in.is_cpu() && out.is_cpu() && static_cast<int64_t>(out.nbytes()) == bytes * world_.size);
  const auto* data = static_cast<const uint8_t*>(in.const_data_ptr());
  world_.store->set(Gather::key(gathers_, world_.rank), std::vector<uint8_t>(data, data + bytes));
  return c10::make_intrusive<Gather>(world_, gathers_++, aborted_, out, bytes);
}

}  // namespace sherd
