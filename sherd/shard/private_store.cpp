#include "sherd/shard/private_store.h"

#include <algorithm>
#include <numeric>

#include "sherd/base/error.h"
#include "sherd/shard/reduction.h"

namespace sherd {
namespace {

constexpr size_t kRingSlots = 2;

std::vector<int> owners(const Transport& transport, const Strategy& strategy) {
  if (strategy.sums == Sums::owner) return {transport.rank()};
  std::vector<int> all(static_cast<size_t>(transport.size()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

PrivateStore::PrivateStore(StoreTransports transports, Ledger& ledger, StorePlan plan)
    : ledger_(ledger),
      transports_(std::move(transports)),
      transport_(*transports_.shard),
      plan_(std::move(plan)),
      owned_(owners(transport_, plan_.strategy)),
      unsharded_(ledger, MemoryKind::unsharded, plan_.device),
      communication_(ledger, MemoryKind::communication, plan_.device),
      groups_(plan_.groups.size()) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const GroupLayout& where = layout(g);
    const auto parameters = [&](int64_t elements) {
      return make_buffer(ledger, MemoryKind::parameters, where.unit, elements, plan_.device, plan_.groups[g].type);
    };
    if (keeps_whole(g)) {
      group.whole_buffer = parameters(where.whole_elements);
    } else {
      group.shard = parameters(where.shard_elements);
    }
    make_gradient(g);
  }
}

void PrivateStore::make_gradient(size_t g) {
  Group& group = groups_[g];
  const GroupLayout& where = gradients(g);
  group.dedicated = {};
  group.dedicated_rest = {};
  group.gradient_buffer = {};
  group.gradient.reset();
  if (!plan_.groups[g].trainable()) return;
  const bool dedicated = plan_.groups[g].slot == SlotKind::dedicated || replicates_optimizer();
  const bool in_place = dedicated && plan_.summing == Summing::in_place;
  if (dedicated) {
    // The slot is communication, but for what stays in it as gradients until the step: all of it, or our own rows.
    const int64_t all = where.shard_elements * transport_.size();
    int64_t kept = in_place ? where.shard_elements : 0;
    if (plan_.strategy.gradients == Spread::whole) kept = all;
    const at::ScalarType type = plan_.groups[g].reduce;
    group.dedicated = {allocate(all, plan_.device, type),
                       ledger_.book(MemoryKind::gradients, where.unit, bytes_of(kept, type))};
    group.dedicated_rest = ledger_.book(MemoryKind::communication, where.unit, bytes_of(all - kept, type));
  }
  if (in_place && replicates_optimizer()) {
    group.gradient = group.dedicated.tensor;
  } else if (in_place) {
    group.gradient = group.dedicated.tensor.narrow(0, transport_.rank() * where.shard_elements, where.shard_elements);
  } else {
    group.gradient_buffer = make_buffer(ledger_, MemoryKind::gradients, where.unit,
                                        where.shard_elements * static_cast<int64_t>(owned_.size()), plan_.device,
                                        kept_gradient_type(plan_, g));
    group.gradient = group.gradient_buffer.tensor;
  }
}

void PrivateStore::set_roles(const std::vector<Roles>& roles) {
  SHERD_CHECK(plan_.summing == Summing::apart);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const GroupLayout before = gradients(g);
    if (!plan_.groups[g].set_roles(roles[g])) continue;
    make_gradient(g);
    if (!keeps_back(g)) continue;
    const BufferPool::Loan old = std::exchange(
        groups_[g].kept_back, communication_.lend(gradients(g).shard_elements, summed_in(plan_.groups[g].reduce)));
    const at::Tensor now = groups_[g].kept_back.tensor().zero_();
    for (size_t p = 0; p < roles[g].size(); ++p) {
      const int64_t count = std::min(before.elements(p, index()).count, gradients(g).elements(p, index()).count);
      now.narrow(0, gradients(g).parameters[p].shard_offset, count)
          .copy_(old.tensor().narrow(0, before.parameters[p].shard_offset, count));
    }
  }
}

at::Tensor PrivateStore::rows(size_t g, size_t parameter, int owner) {
  const auto& p = layout(g).parameters[parameter];
  const auto [first, count] = layout(g).elements(parameter, owner);
  if (keeps_whole(g)) return groups_[g].whole_buffer.tensor.narrow(0, first, count);
  SHERD_CHECK(owner == transport_.rank());
  return groups_[g].shard.tensor.narrow(0, p.shard_offset, count);
}

void PrivateStore::publish(size_t g) {
  Group& group = groups_[g];
  group.gather.wait();
  // Where every rank updates all rows, or there is one rank, the whole buffer is up to date already.
  const bool complete = transport_.size() == 1 || replicates_optimizer();
  group.whole = complete ? Whole::ready : Whole::stale;
  if (!keeps_whole(g)) reshard(g);
}

void PrivateStore::begin_unshard(size_t g) {
  Group& group = groups_[g];
  if (group.whole != Whole::stale || transport_.size() == 1) return;
  const GroupLayout& where = layout(g);
  const at::ScalarType type = plan_.groups[g].type;
  at::Tensor mine;
  if (keeps_whole(g)) {
    group.send = communication_.lend(where.shard_elements, type);
    mine = group.send.tensor();
    for (size_t p = 0; p < where.parameters.size(); ++p) {
      const at::Tensor own = rows(g, p, transport_.rank());
      mine.narrow(0, where.parameters[p].shard_offset, own.numel()).copy_(own);
    }
  } else {
    mine = group.shard.tensor;
    group.loan = unsharded_.lend(where.whole_elements, type);
  }
  group.received = communication_.lend(where.shard_elements * transport_.size(), type);
  group.gather = transport_.all_gather(mine, group.received.tensor(), title_of_unit(where.unit));
  group.whole = Whole::in_flight;
}

at::Tensor PrivateStore::unshard(size_t g) {
  Group& group = groups_[g];
  begin_unshard(g);
  const at::Tensor whole = keeps_whole(g) ? group.whole_buffer.tensor : group.loan.tensor();
  if (group.whole == Whole::in_flight) {
    group.gather.wait();
    const GroupLayout& where = layout(g);
    for (int r = 0; r < transport_.size(); ++r) {
      for (size_t p = 0; p < where.parameters.size(); ++p) {
        const auto [first, count] = where.elements(p, r);
        if (count == 0) continue;
        const int64_t from = r * where.shard_elements + where.parameters[p].shard_offset;
        whole.narrow(0, first, count).copy_(group.received.tensor().narrow(0, from, count));
      }
    }
    group.received.give_back();
    group.send.give_back();
    group.whole = Whole::ready;
  }
  return whole;
}

// What a writing unit has changed in this rank's own rows stays; what it has changed in others' is lost.
void PrivateStore::keep_written_rows(size_t g) {
  const GroupLayout& where = layout(g);
  for (size_t p = 0; p < where.parameters.size(); ++p) {
    const auto [first, count] = where.elements(p, transport_.rank());
    rows(g, p, transport_.rank()).copy_(groups_[g].loan.tensor().narrow(0, first, count));
  }
}

void PrivateStore::reshard(size_t g) {
  if (keeps_whole(g)) return;
  Group& group = groups_[g];
  group.gather.wait();
  if (group.whole == Whole::ready && plan_.groups[g].access == Access::write) keep_written_rows(g);
  group.received.give_back();
  group.loan.give_back();
  group.whole = Whole::stale;
}

at::Tensor PrivateStore::slot_tensor(size_t g) const {
  return groups_[g].dedicated.tensor.defined() ? groups_[g].dedicated.tensor : groups_[g].slot.tensor();
}

int64_t PrivateStore::slot_blocked_by(size_t g) const {
  if (groups_[g].outstanding) return static_cast<int64_t>(g);
  if (groups_[g].dedicated.tensor.defined() || ring_.size() < kRingSlots) return -1;
  return static_cast<int64_t>(ring_.front());
}

at::Tensor PrivateStore::open_slot(size_t g) {
  SHERD_CHECK(slot_blocked_by(g) < 0);
  Group& group = groups_[g];
  if (!group.dedicated.tensor.defined()) {
    group.slot = communication_.lend(gradients(g).shard_elements * transport_.size(), plan_.groups[g].reduce);
    zero_padding(gradients(g), group.slot.tensor());
  }
  return slot_tensor(g);
}

void PrivateStore::contribute(size_t g) {
  while (std::count(spreading_.begin(), spreading_.end(), g) > 0) finish_oldest_spreading();
  Group& group = groups_[g];
  const at::Tensor slot = slot_tensor(g);
  if (transport_.size() > 1)
    group.exchange.start(transport_, communication_, plan_.codec, slot, title_of_unit(layout(g).unit));
  group.outstanding = true;
  if (!group.dedicated.tensor.defined()) ring_.push_back(g);
}

bool PrivateStore::reduce(size_t g, Round round, Patience patience) {
  if (patience == Patience::now_or_not) return false;
  Group& group = groups_[g];
  SHERD_CHECK(group.outstanding);
  const int64_t piece = gradients(g).shard_elements;
  const at::Tensor mine = group.gradient.narrow(0, replicates_optimizer() ? transport_.rank() * piece : 0, piece);
  sum_over_ranks(g, transport_.size() > 1 ? group.exchange.wait() : slot_tensor(g), mine, round);
  group.slot.give_back();
  group.outstanding = false;
  std::erase(ring_, g);
  if (!replicates_optimizer()) {
    group.exchange.give_back();
    return true;
  }
  // Every rank updates every row: the summed pieces travel on.
  group.sent = communication_.lend(piece, mine.scalar_type());
  group.sent.tensor().copy_(mine);
  group.exchange.give_back();
  group.spread = transport_.all_gather(group.sent.tensor(), group.gradient, title_of_unit(layout(g).unit));
  spreading_.push_back(g);
  if (spreading_.size() > kRingSlots) finish_oldest_spreading();
  return true;
}

void PrivateStore::finish_oldest_spreading() {
  Group& group = groups_[spreading_.front()];
  spreading_.pop_front();
  group.spread.wait();
  group.sent.give_back();
}

void PrivateStore::finish_round() {
  while (!spreading_.empty()) finish_oldest_spreading();
}

// Along the shard axis, then along the replicas: with a power of two of shards that is the canonical tree over all
// ranks.
void PrivateStore::sum_over_ranks(size_t g, const at::Tensor& all, const at::Tensor& mine, Round round) {
  const int64_t piece = gradients(g).shard_elements;
  std::vector<at::Tensor> sources;
  for (int r = 0; r < transport_.size(); ++r) sources.push_back(all.narrow(0, r * piece, piece));
  if (transports_.replicas == nullptr) return canonical_sum(sources, mine, round, groups_[g].divisor);

  BufferPool::Loan& sum = groups_[g].kept_back;
  const Round here = keeps_back(g) ? Round::later : Round::first;
  const at::ScalarType type = summed_in(plan_.groups[g].reduce);
  if (!keeps_back(g)) sum = communication_.lend(piece, type);
  canonical_sum(sources, sum.tensor(), here);
  if (reach_ == Reach::shard_axis) return;

  const int replicas = transports_.replicas->size();
  const BufferPool::Loan sums = communication_.lend(piece * replicas, type);
  transports_.replicas->all_gather(sum.tensor(), sums.tensor(), title_of_unit(layout(g).unit)).wait();
  sources.clear();
  for (int r = 0; r < replicas; ++r) sources.push_back(sums.tensor().narrow(0, r * piece, piece));
  canonical_sum(sources, mine, round, groups_[g].divisor);
  sum.give_back();
}

void PrivateStore::renew_gradient(size_t g) {
  Group& group = groups_[g];
  SHERD_CHECK(group.gradient_buffer.tensor.defined());
  group.gradient_buffer = make_buffer(ledger_, MemoryKind::gradients, layout(g).unit, group.gradient.numel(),
                                      plan_.device, kept_gradient_type(plan_, g));
  group.gradient = group.gradient_buffer.tensor;
}

void PrivateStore::drop_unshard(size_t g) noexcept {
  Group& group = groups_[g];
  if (group.whole != Whole::in_flight) return;
  group.gather = Pending();
  for (auto* loan : {&group.loan, &group.send, &group.received}) loan->give_back();
  group.whole = Whole::stale;
}

void PrivateStore::drop() noexcept {
  for (Group& group : groups_) {
    group.gather = Pending();
    group.exchange.drop();
    group.spread = Pending();
    for (auto* loan : {&group.loan, &group.send, &group.received, &group.slot, &group.sent, &group.kept_back})
      loan->give_back();
    // Which gathers have ended differs between ranks; all are done again. (Else every rank has the whole anyway.)
    if (transport_.size() > 1 && !replicates_optimizer()) group.whole = Whole::stale;
    group.outstanding = false;
  }
  ring_.clear();
  spreading_.clear();
}

}  // namespace sherd
