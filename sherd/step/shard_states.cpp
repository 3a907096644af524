#include "sherd/step/shard_states.h"

#include <ATen/ops/empty.h>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/base/fnv.h"
#include "sherd/memory/buffer.h"

namespace sherd {
namespace {

constexpr int64_t kAlignment = 64;  // bytes: a cache line
constexpr MemoryKind kKinds[] = {MemoryKind::moments, MemoryKind::master};

int64_t room_for(const StateTensor& state) { return round_up(bytes_of(state.elements, state.type), kAlignment); }

/// Memory for all states of a kind of some shards of one unit.
void give_memory(Ledger& ledger, MemoryKind kind, const OwnedShard& first, std::span<ShardState> states) {
  int64_t bytes = 0;
  for (const auto& state : states)
    for (const auto& tensor : state.kinds) bytes += tensor.kind == kind ? room_for(tensor) : 0;
  const at::Device device = first.values.device();
  std::shared_ptr<Buffer> buffer;
  if (bytes > 0) buffer = std::make_shared<Buffer>(make_buffer(ledger, kind, first.unit, bytes, device, at::kByte));
  int64_t offset = 0;
  for (auto& state : states) {
    for (size_t k = 0; k < state.kinds.size(); ++k) {
      const StateTensor& wanted = state.kinds[k];
      if (wanted.kind != kind) continue;
      state.tensors[k] = wanted.elements > 0 ? part_of(buffer, offset, wanted.elements, wanted.type)
                                             : at::empty({0}, at::TensorOptions(wanted.type).device(device));
      offset += room_for(wanted);
    }
  }
}

}  // namespace

UpdatePiece ShardState::piece(const OwnedShard& shard, at::Tensor gradient) const {
  return {shard.values, std::move(gradient), tensors, master, shard.first_element(), key};
}

uint64_t key_of(const OwnedShard& shard) {
  Fnv key;
  key.add(shard.fqn);
  return key.value();
}

Master master_for(const OwnedShard& shard, Master asked) {
  const at::ScalarType type = shard.values.scalar_type();
  if (type == at::kFloat) return Master::nearest;
  if (type == at::kHalf && (asked == Master::split || asked == Master::stochastic))
    config_error("optim",
                 "got master='{}' with parameter '{}' of torch.float16, expected 'fp32' or 'nearest' (others are for "
                 "bfloat16); try 'fp32'",
                 name_of(asked), shard.fqn);
  return asked;
}

MomentFit fit_of_moments(const OwnedShard& shard, std::span<const std::string> fp32) {
  const int64_t rows = shard.sizes.empty() ? 1 : shard.sizes[0];
  if (rows * shard.row_elements < kLeast8BitElements || any_glob_matches(fp32, shard.fqn))
    return MomentFit::small_or_named;
  return fits_eight_bits(rows, shard.row_elements, shard.ranks) ? MomentFit::eight_bits : MomentFit::cuts_blocks;
}

std::vector<ShardState> make_states(Ledger& ledger, std::span<const OwnedShard* const> shards,
                                    std::span<const ShardRule> rules) {
  SHERD_CHECK(shards.size() == rules.size());
  std::vector<ShardState> states(shards.size());
  for (size_t i = 0; i < shards.size(); ++i) {
    const ShardRule& how = rules[i];
    states[i].key = key_of(*shards[i]);
    states[i].master = how.master;
    if (how.rule == nullptr) continue;
    const at::Tensor& values = shards[i]->values;
    states[i].kinds = how.rule->state({values.numel(), values.scalar_type(), how.moments, how.master});
    states[i].tensors.resize(states[i].kinds.size());
  }
  for (size_t first = 0, end = 0; first < shards.size(); first = end) {
    while (end < shards.size() && shards[end]->unit == shards[first]->unit) ++end;
    for (const MemoryKind kind : kKinds)
      give_memory(ledger, kind, *shards[first], std::span(states).subspan(first, end - first));
  }
  return states;
}

}  // namespace sherd
