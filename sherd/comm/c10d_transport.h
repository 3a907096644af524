// The transport over a c10d::Backend: Gloo, or any backend that has _allgather_base and alltoall_base.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <string>

#include "sherd/comm/peer_watch.h"
#include "sherd/comm/rendezvous.h"
#include "sherd/comm/transport.h"

namespace sherd {

class C10dTransport : public Transport {
 public:
  /// Takes a connected backend. Collective: peers on this host exchange their process numbers, so that a dead one is
  /// named.
  C10dTransport(const World& world, c10::intrusive_ptr<c10d::Backend> backend, std::string name);

  std::string_view name() const override { return name_; }
  std::vector<double> exchange(std::span<const double> values) override;
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole) override;
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received) override;
  void abort(std::string_view cause) noexcept override;

 private:
  Pending pending(c10::intrusive_ptr<c10d::Work> work, std::vector<at::Tensor> held, const char* what);
  [[noreturn]] void failed(const char* what, const std::exception& error);

  World world_;
  c10::intrusive_ptr<c10d::Backend> backend_;
  std::string name_;
  PeerWatch watch_;
};

}  // namespace sherd
