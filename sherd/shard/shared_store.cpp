#include "sherd/shard/shared_store.h"

#include <ATen/ops/from_blob.h>
#include <fmt/ranges.h>

#include <cstring>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/shard/reduction.h"

namespace sherd {
namespace {

constexpr int64_t kSlotAlignment = 4096;  // bytes: slots start on pages

at::Tensor tensor_over(std::byte* data, int64_t elements, at::ScalarType type) {
  return at::from_blob(data, {elements}, at::TensorOptions().dtype(type));
}

}  // namespace

SharedStore::SharedStore(HostSegment& host, Ledger& ledger, StorePlan plan)
    : host_(host), ledger_(ledger), plan_(std::move(plan)), owned_{host.rank()}, groups_(plan_.groups.size()) {
  epoch_memory_ =
      host_.share(static_cast<int64_t>(sizeof(GroupEpochs) * std::max<size_t>(1, groups_.size())) * host_.size(), 0);
  epoch_mapping_ = epoch_memory_.map_writable(0, epoch_memory_.bytes());
  make_parameters(ledger);
  guard_parameters();
  make_slots();
  for (size_t g = 0; g < groups_.size(); ++g) make_gradient(g);
  barrier(host_);
}

GroupEpochs& SharedStore::epochs(size_t g, int rank) const {
  return reinterpret_cast<GroupEpochs*>(
      epoch_mapping_.data())[g * static_cast<size_t>(host_.size()) + static_cast<size_t>(rank)];
}

void SharedStore::make_parameters(Ledger& ledger) {
  int64_t bytes = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].whole_offset = bytes;
    bytes += plan_.groups[g].layout.whole_elements * plan_.groups[g].element_bytes();
  }
  parameters_ = host_.share(bytes, 0);
  view_ = parameters_.map_private();
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const GroupLayout& layout = plan_.groups[g].layout;
    const int64_t size = plan_.groups[g].element_bytes();
    group.whole = tensor_over(view_.data() + group.whole_offset, layout.whole_elements, plan_.groups[g].type);
    if (plan_.groups[g].access == Access::write)
      group.copy = make_buffer(ledger, MemoryKind::parameters, layout.unit, layout.whole_elements, at::kCPU,
                               plan_.groups[g].type);
    int64_t own_elements = 0;
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const auto [first, count] = layout.elements(p, host_.rank());
      group.own_rows.push_back(parameters_.map_writable(group.whole_offset + first * size, count * size));
      own_elements += count;
    }
    group.rows_booking = ledger.book(MemoryKind::parameters, layout.unit, own_elements * size);
  }
}

void SharedStore::guard_parameters() {
  std::vector<GuardedRange> ranges;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const GroupLayout& layout = plan_.groups[g].layout;
    const int64_t size = plan_.groups[g].element_bytes();
    for (const auto& parameter : layout.parameters)
      ranges.push_back({view_.data() + groups_[g].whole_offset + parameter.offset * size, parameter.elements() * size,
                        fmt::format("'{}' of {}", parameter.fqn, title_of_unit(layout.unit))});
  }
  guard_.emplace(std::move(ranges));
}

// Elements of a slot of group g that begins at `offset` of a rank's gradient segment.
at::Tensor SharedStore::slot_piece(int rank, int64_t offset, size_t g, int64_t first, int64_t elements) const {
  const at::ScalarType type = plan_.groups[g].reduce;
  return tensor_over(gradients_[static_cast<size_t>(rank)].data() + offset + bytes_of(first, type), elements, type);
}

void SharedStore::make_slots() {
  int64_t bytes = 0, largest = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].slot_bookings.clear();
    groups_[g].dedicated_offset = -1;
    if (!plan_.groups[g].trainable()) continue;
    const GroupLayout& layout = plan_.groups[g].gradients;
    const int64_t shard = bytes_of(layout.shard_elements, plan_.groups[g].reduce), all = shard * host_.size();
    const int64_t slot = round_up(all, kSlotAlignment);
    if (plan_.groups[g].slot == SlotKind::ring) {
      largest = std::max(largest, slot);
      continue;
    }
    groups_[g].dedicated_offset = bytes;
    bytes += slot;
    // The slot is communication, but for what stays in it as gradients until the step: all of it, or our own rows.
    int64_t kept = plan_.summing == Summing::in_place ? shard : 0;
    if (plan_.strategy.gradients == Spread::whole) kept = all;
    groups_[g].slot_bookings.push_back(ledger_.book(MemoryKind::gradients, layout.unit, kept));
    groups_[g].slot_bookings.push_back(ledger_.book(MemoryKind::communication, layout.unit, all - kept));
  }
  for (int64_t& offset : ring_offset_) {
    offset = bytes;
    bytes += largest;
  }
  ring_booking_ = ledger_.book(MemoryKind::communication, "", 2 * largest);
  ring_user_[0] = ring_user_[1] = -1;

  gradient_memory_.clear();
  gradients_.clear();
  for (int r = 0; r < host_.size(); ++r) {
    gradient_memory_.push_back(host_.share(bytes, r));
    auto& memory = gradient_memory_.back();
    gradients_.push_back(r == host_.rank() ? memory.map_writable(0, memory.bytes()) : memory.map_read_only());
  }
}

void SharedStore::make_gradient(size_t g) {
  Group& group = groups_[g];
  const GroupLayout& layout = plan_.groups[g].gradients;
  group.gradient_buffer = {};
  group.gradient.reset();
  if (!plan_.groups[g].trainable()) return;
  if (plan_.summing == Summing::in_place && group.dedicated_offset >= 0) {
    group.gradient = slot_piece(host_.rank(), group.dedicated_offset, g, host_.rank() * layout.shard_elements,
                                layout.shard_elements);
    return;
  }
  group.gradient_buffer = make_buffer(ledger_, MemoryKind::gradients, layout.unit, layout.shard_elements, at::kCPU,
                                      kept_gradient_type(plan_, g));
  group.gradient = group.gradient_buffer.tensor;
}

// All slots move to new segments. A peer that still reads an old one has it mapped.
void SharedStore::set_roles(const std::vector<Roles>& roles) {
  SHERD_CHECK(plan_.summing == Summing::apart);
  std::vector<size_t> changed;
  for (size_t g = 0; g < groups_.size(); ++g)
    if (plan_.groups[g].set_roles(roles[g])) changed.push_back(g);
  if (changed.empty()) return;
  try {
    make_slots();
    for (const size_t g : changed) make_gradient(g);
    barrier(host_);
  } catch (...) {  // The next time all of it is made.
    for (auto& group : plan_.groups) group.roles.clear();
    throw;
  }
}

at::Tensor SharedStore::unshard(size_t g) {
  Group& group = groups_[g];
  const uint64_t version = group.published;
  for (int r = 0; r < host_.size(); ++r) {
    const auto& line = epochs(g, r);
    host_.wait_for(
        r, [&] { return line.published.load(std::memory_order_acquire) >= version; }, "updated parameters");
  }
  if (!group.copy.tensor.defined()) return group.whole;
  if (std::exchange(group.copied, version) != version) copy_peers_rows(g);
  return group.copy.tensor;
}

// What this rank has changed in its own rows stays; what it has changed in others' is lost.
void SharedStore::copy_peers_rows(size_t g) {
  const GroupLayout& layout = plan_.groups[g].layout;
  for (size_t p = 0; p < layout.parameters.size(); ++p) {
    for (int r = 0; r < host_.size(); ++r) {
      const auto [first, count] = layout.elements(p, r);
      if (r != host_.rank() && count > 0)
        groups_[g].copy.tensor.narrow(0, first, count).copy_(groups_[g].whole.narrow(0, first, count));
    }
  }
}

at::Tensor SharedStore::rows(size_t g, size_t parameter, int owner) {
  SHERD_CHECK(owner == host_.rank());
  if (groups_[g].copy.tensor.defined()) {
    const auto [first, count] = plan_.groups[g].layout.elements(parameter, owner);
    return groups_[g].copy.tensor.narrow(0, first, count);
  }
  return segment_rows(g, parameter);
}

at::Tensor SharedStore::segment_rows(size_t g, size_t parameter) {
  const Mapping& mapping = groups_[g].own_rows[parameter];
  return tensor_over(mapping.data(), mapping.bytes() / plan_.groups[g].element_bytes(), plan_.groups[g].type);
}

void SharedStore::publish(size_t g) {
  if (groups_[g].copy.tensor.defined())
    for (size_t p = 0; p < groups_[g].own_rows.size(); ++p) segment_rows(g, p).copy_(rows(g, p, host_.rank()));
  epochs(g, host_.rank()).published.store(++groups_[g].published, std::memory_order_release);
  host_.notify();
}

int64_t SharedStore::slot_blocked_by(size_t g) const {
  const auto outstanding = [&](size_t user) { return groups_[user].reduced < groups_[user].contributed; };
  if (outstanding(g)) return static_cast<int64_t>(g);
  const int64_t user = groups_[g].dedicated_offset >= 0 ? -1 : ring_user_[ring_next_];
  return user >= 0 && outstanding(static_cast<size_t>(user)) ? user : -1;
}

void SharedStore::wait_until_reduced(size_t g) {
  const uint64_t round = groups_[g].contributed;
  for (int r = 0; r < host_.size(); ++r) {
    const auto& line = epochs(g, r);
    host_.wait_for(
        r, [&] { return line.reduced.load(std::memory_order_acquire) >= round; }, "a gradient slot");
  }
}

at::Tensor SharedStore::open_slot(size_t g) {
  SHERD_CHECK(slot_blocked_by(g) < 0);
  Group& group = groups_[g];
  const GroupLayout& layout = plan_.groups[g].gradients;
  const int64_t elements = layout.shard_elements * host_.size();
  wait_until_reduced(g);  // until then peers look up where its last round lies
  if (group.dedicated_offset >= 0) {
    group.slot_offset = group.dedicated_offset;
    return slot_piece(host_.rank(), group.slot_offset, g, 0, elements);
  }
  const int slot = ring_next_;
  ring_next_ = 1 - ring_next_;
  if (ring_user_[slot] >= 0) wait_until_reduced(static_cast<size_t>(ring_user_[slot]));
  group.slot_offset = ring_offset_[slot];
  const at::Tensor tensor = slot_piece(host_.rank(), group.slot_offset, g, 0, elements);
  if (ring_user_[slot] != static_cast<int64_t>(g)) zero_padding(layout, tensor);
  ring_user_[slot] = static_cast<int64_t>(g);
  return tensor;
}

void SharedStore::contribute(size_t g) {
  Group& group = groups_[g];
  auto& line = epochs(g, host_.rank());
  line.slot_offset.store(group.slot_offset, std::memory_order_relaxed);
  line.contributed.store(++group.contributed, std::memory_order_release);
  host_.notify();
}

bool SharedStore::reduce(size_t g, Round round, Patience patience) {
  Group& group = groups_[g];
  const GroupLayout& layout = plan_.groups[g].gradients;
  const uint64_t wanted = group.reduced + 1;
  std::vector<at::Tensor> sources;
  for (int r = 0; r < host_.size(); ++r) {
    const auto& line = epochs(g, r);
    const auto ready = [&] { return line.contributed.load(std::memory_order_acquire) >= wanted; };
    if (!ready()) {
      if (patience == Patience::now_or_not) return false;
      host_.wait_for(r, ready, "the gradients of " + title_of_unit(layout.unit));
    }
    sources.push_back(slot_piece(r, line.slot_offset.load(std::memory_order_relaxed), g,
                                 host_.rank() * layout.shard_elements, layout.shard_elements));
  }
  canonical_sum(sources, group.gradient, round, group.divisor);
  epochs(g, host_.rank()).reduced.store(++group.reduced, std::memory_order_release);
  host_.notify();
  return true;
}

void SharedStore::check_unwritten() {
  if (!guard_->written()) return;
  // Clamping what is in bounds, for example, writes what was there.
  std::vector<std::string> names;
  const Mapping shared = parameters_.map_read_only();
  for (const GuardedRange& range : guard_->take_written())
    if (std::memcmp(range.first, shared.data() + (range.first - view_.data()), static_cast<size_t>(range.bytes)) != 0)
      names.push_back(range.name);
  parameters_.restore(view_);
  if (names.empty()) return;
  fault("shard",
        "got a write in place to parameter {}, expected reads: all ranks of this host share it. The write is undone; "
        "try to change it between steps, through the model's parameters, or in C++ EngineOptions::writing_units",
        fmt::join(names, ", "));
}

void SharedStore::take_back() {
  if (guard_->take_written().empty()) return;
  parameters_.restore(view_);
}

void SharedStore::renew_gradient(size_t g) {
  SHERD_CHECK(groups_[g].gradient_buffer.tensor.defined());
  make_gradient(g);
}

// All ranks have stopped: nobody looks at the counters now. What an interrupted round has left in a slot is
// overwritten.
void SharedStore::restart() {
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].contributed = groups_[g].reduced = 0;
    epochs(g, host_.rank()).contributed.store(0, std::memory_order_relaxed);
    epochs(g, host_.rank()).reduced.store(0, std::memory_order_relaxed);
  }
  ring_user_[0] = ring_user_[1] = -1;
  ring_next_ = 0;
  barrier(host_);
}

}  // namespace sherd
