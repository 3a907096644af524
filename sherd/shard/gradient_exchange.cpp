#include "sherd/shard/gradient_exchange.h"

namespace sherd {

void GradientExchange::start(Collectives& collectives, BufferPool& pool, Codec codec, const at::Tensor& slot,
                             std::string_view what) {
  const at::ScalarType type = wire_type(codec, slot.scalar_type());
  at::Tensor sent = slot;
  if (type != slot.scalar_type()) {
    encoded_ = pool.lend(slot.numel(), type);
    sent = encoded_.tensor();
    encode(codec, slot, sent);
  }
  received_ = pool.lend(slot.numel(), type);
  pending_ = collectives.all_to_all(sent, received_.tensor(), what);
}

const at::Tensor& GradientExchange::wait() {
  pending_.wait();
  encoded_.give_back();
  return received_.tensor();
}

void GradientExchange::give_back() { received_.give_back(); }

void GradientExchange::drop() noexcept {
  pending_ = Pending();
  encoded_.give_back();
  received_.give_back();
}

}  // namespace sherd
