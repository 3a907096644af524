#include "sherd/engine/optimizer_state.h"

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>

#include "sherd/base/bytes.h"
#include "sherd/base/fnv.h"

namespace sherd {
namespace {

constexpr int64_t kAlignment = 64;  // bytes: a cache line

}  // namespace

OptimizerState::OptimizerState(const UpdateRule& rule, const UpdateRule* matrix_rule, ShardedModel& model,
                               Ledger& ledger, const EngineOptions& options)
    : model_(model), optim_groups_(options.optimizer, options.optimizer_groups) {
  for (size_t g = 0; g < model_.groups().size(); ++g) {
    const auto& layout = model_.groups()[g]->layout();
    auto& hyper = hyper_.emplace_back();
    for (const auto& parameter : layout.parameters) hyper.push_back(&optim_groups_.find(parameter.fqn));
    Group& group = groups_.emplace_back();
    for (const auto& parameter : layout.parameters)
      group.matrix.push_back(matrix_rule != nullptr && parameter.sizes.size() == 2 &&
                             !any_glob_matches(options.not_muon, parameter.fqn));
    if (!model_.groups()[g]->trainable()) continue;
    int64_t moments = 0, masters = 0;
    lay_out(rule, matrix_rule, g, options, group, moments, masters);
    const auto buffer = [&](MemoryKind kind, int64_t bytes) {
      if (bytes == 0) return Buffer{at::empty({0}, at::TensorOptions(at::kByte).device(options.device)), {}};
      return make_buffer(ledger, kind, layout.unit, bytes, options.device, at::kByte);
    };
    group.moments = buffer(MemoryKind::moments, moments);
    group.masters = buffer(MemoryKind::master, masters);
  }
  if (!cut_.empty())
    notes_.push_back(fmt::format("optimizer: fp32 moments for {} parameter{} whose shards would cut a block of {}: {}",
                                 cut_.size(), cut_.size() == 1 ? "" : "s", kMomentBlock, fmt::join(cut_, ", ")));
}

MomentType OptimizerState::moments_of(size_t g, size_t p, const EngineOptions& options) {
  const GroupLayout& layout = model_.groups()[g]->layout();
  const auto& parameter = layout.parameters[p];
  if (options.moments == MomentType::fp32 || parameter.elements() < kLeast8BitElements) return MomentType::fp32;
  if (groups_[g].matrix[p] || any_glob_matches(options.fp32_moments, parameter.fqn)) return MomentType::fp32;
  if (fits_eight_bits(parameter.rows, parameter.row_elements, layout.ranks)) return MomentType::eight_bits;
  cut_.push_back(parameter.fqn);
  return MomentType::fp32;
}

void OptimizerState::lay_out(const UpdateRule& rule, const UpdateRule* matrix_rule, size_t g,
                             const EngineOptions& options, Group& group, int64_t& moments, int64_t& masters) {
  const ParamGroup& parameters = *model_.groups()[g];
  const GroupLayout& layout = parameters.layout();
  for (size_t p = 0; p < layout.parameters.size(); ++p) {
    const Master asked = options.precision ? options.precision->master : Master::nearest;
    const Master master = parameters.type() == at::kFloat ? Master::nearest : asked;
    const MomentType type = moments_of(g, p, options);
    group.master.push_back(master);
    Fnv key;
    key.add(layout.parameters[p].fqn);
    group.key.push_back(key.value());
    const UpdateRule& own = group.matrix[p] ? *matrix_rule : rule;
    auto& owners = group.at.emplace_back();
    for (const int owner : model_.store().owned()) {
      const int64_t elements = layout.elements(p, owner).count;
      auto& places = owners.emplace_back();
      for (const StateTensor& state : own.state({elements, parameters.type(), type, master})) {
        int64_t& offset = state.kind == MemoryKind::master ? masters : moments;
        places.push_back({state.kind, state.type, offset, state.elements});
        offset += round_up(bytes_of(state.elements, state.type), kAlignment);
      }
    }
  }
}

UpdatePiece OptimizerState::piece(size_t g, size_t p, size_t o) const {
  const GroupLayout& layout = model_.groups()[g]->layout();
  const int owner = model_.store().owned()[o];
  UpdatePiece piece{model_.store().rows(g, p, owner), {}, {}};
  if (!model_.groups()[g]->trainable()) return piece;
  const Group& group = groups_[g];
  for (const Place& place : group.at[p][o]) {
    const Buffer& buffer = place.kind == MemoryKind::master ? group.masters : group.moments;
    const int64_t bytes = bytes_of(place.elements, place.type);
    piece.state.push_back(buffer.tensor.narrow(0, place.offset, bytes).view(place.type));
  }
  piece.master = group.master[p];
  piece.first = layout.rows(p, owner).first * layout.parameters[p].row_elements;
  piece.key = group.key[p];
  return piece;
}

}  // namespace sherd
