// One group's gradients on their way to the ranks that sum them: the one place where a codec is applied.
#pragma once

#include <string_view>

#include "sherd/comm/codec.h"
#include "sherd/comm/collectives.h"
#include "sherd/memory/buffer.h"

namespace sherd {

class GradientExchange {
 public:
  /// Starts to send the pieces of `slot` (rank-major) to their ranks, as the codec has them; the slot stays as it is
  /// until wait() has returned. Lends what it needs from `pool`: as much as the slot, and with a codec twice what it
  /// makes of that. Collective.
  void start(Collectives& collectives, BufferPool& pool, Codec codec, const at::Tensor& slot, std::string_view what);
  /// What the ranks sent to this one: as long as the slot, piece r from rank r, of the type that they travel in. Valid
  /// until give_back().
  const at::Tensor& wait();
  void give_back();
  /// Waits for what is under way, and drops it with its errors.
  void drop() noexcept;

 private:
  BufferPool::Loan encoded_, received_;
  Pending pending_;
};

}  // namespace sherd
