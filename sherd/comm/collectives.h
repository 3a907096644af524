// How data moves between ranks: collectives of bytes, whatever they mean.
//
// All ranks make the same calls in the same order, and their results are there in that order. Tensors are 1-D and
// contiguous, of one type and device in a call. Where data is sent, ranks that differ in kind, size or `what` of a
// collective all get a FaultError that says who is in what (not where a backend moves a device's tensors only).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string_view>
#include <utility>

namespace sherd {

/// A started collective. wait() blocks until its result is there, or orders the device's current stream after it;
/// destruction without wait() waits and drops errors. It owns no buffer of its caller's.
class [[nodiscard]] Pending {
 public:
  Pending() = default;
  explicit Pending(std::function<void()> wait) : wait_(std::move(wait)) {}
  Pending(Pending&& other) noexcept : wait_(std::exchange(other.wait_, nullptr)) {}
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();
  void wait();

 private:
  std::function<void()> wait_;
};

class Collectives {
 public:
  Collectives() = default;
  virtual ~Collectives() = default;
  Collectives(const Collectives&) = delete;
  Collectives& operator=(const Collectives&) = delete;

  /// whole[r*n, (r+1)*n) = rank r's shard. shard: [n], whole: [size*n]; both must live until wait() returns.
  /// `what` is for errors: "unit 'block3'".
  virtual Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what = {}) = 0;

  /// received[r*n, (r+1)*n) = piece `this rank` of rank r's send. send, received: [size*n], alive until wait() returns.
  virtual Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what = {}) = 0;

  /// Gives back what collectives have kept for the next of them. On all ranks, or on none.
  virtual void drop_staging() {}

  /// Bytes that this rank has sent to peers through sockets or copies.
  virtual int64_t bytes_sent() const { return bytes_sent_; }

 protected:
  int64_t bytes_sent_ = 0;
};

}  // namespace sherd
