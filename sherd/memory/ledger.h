// The ledger: every buffer that the engine holds, booked by kind and unit, on one rank.
//
// A Booking is taken when a buffer is acquired and lives as long as the buffer; its end is the buffer's end.
// Shared bytes are booked by their owner. Thread-safe; a booking costs a lock and a few additions.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace sherd {

/// What a buffer is for.
enum class MemoryKind { parameters, gradients, master, moments, unsharded, communication };
constexpr int kMemoryKinds = 6;
std::string_view name_of(MemoryKind kind);

class Ledger;

/// Bytes held from construction to destruction. Move-only; outlives its ledger safely.
class [[nodiscard]] Booking {
 public:
  Booking() = default;
  Booking(Booking&& other) noexcept : ledger_(std::move(other.ledger_)), entry_(std::move(other.entry_)) {}
  Booking& operator=(Booking&& other) noexcept;
  ~Booking();

 private:
  friend class Ledger;
  struct Entry {
    MemoryKind kind;
    std::string unit;
    int64_t bytes;
  };
  struct State;
  std::shared_ptr<State> ledger_;
  std::unique_ptr<Entry> entry_;
};

/// One rank's books.
class Ledger {
 public:
  Ledger();
  /// Books `bytes` for `unit` (its name in the model; "" for the whole engine).
  Booking book(MemoryKind kind, std::string unit, int64_t bytes);

  int64_t total(MemoryKind kind) const;
  int64_t total() const;
  /// The highest total of a kind since the start.
  int64_t peak(MemoryKind kind) const;
  /// Bytes by unit of one kind, now.
  std::map<std::string, int64_t> by_unit(MemoryKind kind) const;

 private:
  std::shared_ptr<Booking::State> state_;
};

}  // namespace sherd
