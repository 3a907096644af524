#include "sherd/engine/broadcast_buffers.h"

#include <cstring>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/base/fnv.h"

namespace sherd {
namespace {

// A number that two buffers share only if they have one name, shape and type.
double signature(const std::string& name, const at::Tensor& buffer) {
  Fnv hash;
  hash.add(name);
  hash.add(static_cast<uint64_t>(buffer.scalar_type()));
  for (const int64_t size : buffer.sizes()) hash.add(static_cast<uint64_t>(size) + 1);
  return hash.as_double();
}

}  // namespace

void broadcast_buffers(torch::nn::Module& module, Transport& transport) {
  std::vector<std::pair<std::string, at::Tensor>> buffers;
  for (const auto& item : module.named_buffers())
    if (item.value().defined() && item.value().numel() > 0) buffers.emplace_back(item.key(), item.value());
  const auto count = static_cast<double>(buffers.size());
  for (const double other : transport.exchange({&count, 1}))
    if (other != count)
      config_error("buffers", "got {} buffers here and {} on another rank, expected the same model on all ranks", count,
                   other);
  std::vector<double> signatures;
  for (const auto& [name, buffer] : buffers) signatures.push_back(signature(name, buffer));
  const std::vector<double> all = transport.exchange(signatures);
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& [name, buffer] = buffers[i % buffers.size()];
    if (all[i] != signatures[i % buffers.size()])
      config_error("buffers",
                   "got a buffer '{}' here that is another one on rank {}, expected the same model on all ranks", name,
                   i / buffers.size());
  }
  const at::NoGradGuard no_grad;
  for (const auto& [name, buffer] : buffers) {
    const auto bytes = static_cast<int64_t>(buffer.nbytes());
    const int64_t floats = ceil_div(bytes, static_cast<int64_t>(sizeof(float)));
    const at::Tensor here = buffer.detach().cpu().contiguous().clone();
    const at::Tensor send = at::zeros({floats}), received = at::empty({floats * transport.size()});
    std::memcpy(send.mutable_data_ptr(), here.const_data_ptr(), static_cast<size_t>(bytes));
    const at::Device device = buffer.device();
    const at::Tensor there = received.to(device);
    transport.all_gather(send.to(device), there).wait();
    std::memcpy(here.mutable_data_ptr(), there.cpu().const_data_ptr(), static_cast<size_t>(bytes));
    buffer.detach().copy_(here);
  }
}

}  // namespace sherd
