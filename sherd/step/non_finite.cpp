#include "sherd/step/non_finite.h"

#include <fmt/format.h>

#include <limits>

#include "sherd/shard/finite.h"
#include "sherd/step/owned_shard.h"
#include "sherd/step/records.h"

namespace sherd {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

/// What a rank has found.
struct Finding {
  int64_t forward = kNone;    // how many forwards came before the first whose output was not finite
  int64_t unit = 0;           // whose that was
  int64_t parameter = kNone;  // in the order of backward: the first whose gradient was not
};

/// The first shard of the parameter that backward reaches after so many others.
size_t shard_in_backward(const OwnedShards& shards, int64_t number) {
  return shards.all().size() - static_cast<size_t>(number + 1) * shards.pieces();
}

int64_t first_gradient(const OwnedShards& shards) {
  const auto parameters = static_cast<int64_t>(shards.all().size() / shards.pieces());
  for (int64_t number = 0; number < parameters; ++number) {
    const size_t first = shard_in_backward(shards, number);
    for (size_t i = first; shards.trainable(first) && i < first + shards.pieces(); ++i)
      if (!is_finite(shards.gradient(i).cpu())) return number;
  }
  return kNone;
}

}  // namespace

std::string origin_of_non_finite(ShardedModel& model) {
  const OwnedShards shards(model);
  Finding mine{.parameter = first_gradient(shards)};
  if (const auto& output = model.first_non_finite()) {
    mine.forward = output->forward;
    mine.unit = static_cast<int64_t>(output->unit);
  }
  const auto all = exchange_records(model.transport(), "the origin of what is not finite", mine).records;
  size_t in_forward = 0, in_backward = 0;  // ranks
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].forward < all[in_forward].forward) in_forward = rank;
    if (all[rank].parameter < all[in_backward].parameter) in_backward = rank;
  }
  if (all[in_forward].forward != kNone)
    return fmt::format("the output of {} in forward (rank {})",
                       title_of_unit(model.units()[static_cast<size_t>(all[in_forward].unit)]->name()), in_forward);
  if (all[in_backward].parameter == kNone) return "a gradient that overflows when it is squared";
  const OwnedShard& shard = shards.all()[shard_in_backward(shards, all[in_backward].parameter)];
  return fmt::format("the gradient of '{}' in {} (rank {})", shard.fqn, title_of_unit(shard.unit), in_backward);
}

}  // namespace sherd
