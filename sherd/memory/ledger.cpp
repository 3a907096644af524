#include "sherd/memory/ledger.h"

#include <algorithm>

namespace sherd {

struct Booking::State {
  mutable std::mutex mutex;
  std::array<int64_t, kMemoryKinds> now{}, peak{};
  std::map<std::pair<int, std::string>, int64_t> units;

  void change(MemoryKind kind, const std::string& unit, int64_t bytes) {
    const std::lock_guard lock(mutex);
    const auto k = static_cast<size_t>(kind);
    now[k] += bytes;
    peak[k] = std::max(peak[k], now[k]);
    auto& held = units[{static_cast<int>(kind), unit}];
    held += bytes;
    if (held == 0) units.erase({static_cast<int>(kind), unit});
  }
};

std::string_view name_of(MemoryKind kind) {
  constexpr std::array<std::string_view, kMemoryKinds> names = {"parameters", "gradients", "master",
                                                                "moments",    "unsharded", "communication"};
  return names[static_cast<size_t>(kind)];
}

Booking& Booking::operator=(Booking&& other) noexcept {
  // What was booked here ends now, as the buffer does that is assigned to, not with `other`.
  Booking taken(std::move(other));
  std::swap(ledger_, taken.ledger_);
  std::swap(entry_, taken.entry_);
  return *this;
}

Booking::~Booking() {
  if (ledger_) ledger_->change(entry_->kind, entry_->unit, -entry_->bytes);
}

Ledger::Ledger() : state_(std::make_shared<Booking::State>()) {}

Booking Ledger::book(MemoryKind kind, std::string unit, int64_t bytes) {
  Booking booking;
  booking.entry_ = std::make_unique<Booking::Entry>(Booking::Entry{kind, std::move(unit), bytes});
  state_->change(kind, booking.entry_->unit, bytes);
  booking.ledger_ = state_;
  return booking;
}

int64_t Ledger::total(MemoryKind kind) const {
  const std::lock_guard lock(state_->mutex);
  return state_->now[static_cast<size_t>(kind)];
}

int64_t Ledger::total() const {
  const std::lock_guard lock(state_->mutex);
  int64_t sum = 0;
  for (const int64_t bytes : state_->now) sum += bytes;
  return sum;
}

int64_t Ledger::peak(MemoryKind kind) const {
  const std::lock_guard lock(state_->mutex);
  return state_->peak[static_cast<size_t>(kind)];
}

std::map<std::string, int64_t> Ledger::by_unit(MemoryKind kind) const {
  const std::lock_guard lock(state_->mutex);
  std::map<std::string, int64_t> result;
  for (const auto& [key, bytes] : state_->units)
    if (key.first == static_cast<int>(kind)) result[key.second] += bytes;
  return result;
}

}  // namespace sherd
