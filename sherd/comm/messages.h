// Small messages that all ranks exchange: plain records and numbers, beside data and without a device.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ranges>
#include <span>
#include <string_view>
#include <vector>

namespace sherd {

/// What travels as the bytes that it is: plain values, without pointers. Lists of doubles have a call of their own.
template <class T>
concept Message =
    std::is_trivially_copyable_v<T> && std::default_initializable<T> && !std::ranges::range<T> && !std::is_pointer_v<T>;

/// All ranks' records, in rank order, and the n values that came behind each: [size * n].
template <Message Record>
struct Exchanged {
  std::vector<Record> records;
  std::vector<double> values;
  std::span<const double> values_of(size_t rank) const {
    const size_t each = values.size() / records.size();
    return std::span(values).subspan(rank * each, each);
  }
};

class Messages {
 public:
  Messages(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Messages() = default;
  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// For people and errors; nothing to decide by.
  virtual std::string_view name() const = 0;

  // Every rank passes as many bytes. Each of these is a barrier too, also with none. `purpose` is one that all ranks
  // are to have: where it or the size differs, all get a FaultError.
  /// All ranks' bytes into `all`, in rank order: [size * mine].
  void exchange_bytes(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view purpose = {});
  /// All ranks' values in rank order: [size * n].
  std::vector<double> exchange(std::span<const double> values, std::string_view purpose = {});
  /// All ranks' records in rank order: [size].
  template <Message Record>
  std::vector<Record> exchange(const Record& mine, std::string_view purpose = {}) {
    std::vector<Record> all(static_cast<size_t>(size_));
    exchange_part({&mine, 1, sizeof(Record)}, std::as_writable_bytes(std::span(all)), purpose);
    return all;
  }
  /// The same with values behind each.
  template <Message Record>
  Exchanged<Record> exchange(const Record& mine, std::span<const double> values, std::string_view purpose = {});

 protected:
  /// One rank's part of an exchange.
  struct Part {
    const void* data;
    int64_t elements, element_bytes;
    std::span<const std::byte> bytes() const {
      return {static_cast<const std::byte*>(data), static_cast<size_t>(elements * element_bytes)};
    }
  };
  virtual void run_exchange(const Part& mine, std::span<std::byte> all) = 0;
  /// What the exchange under way is for.
  std::string_view purpose() const { return purpose_; }
  /// This one's exchange under way, by another's means.
  void exchange_over(Messages& other, const Part& mine, std::span<std::byte> all) const {
    other.exchange_part(mine, all, purpose_);
  }

 private:
  void exchange_part(const Part& mine, std::span<std::byte> all, std::string_view purpose);

  std::string_view purpose_;
  int rank_;
  int size_;
};

/// Returns when all ranks have come.
void barrier(Messages& messages, std::string_view purpose = {});

template <Message Record>
Exchanged<Record> Messages::exchange(const Record& mine, std::span<const double> values, std::string_view purpose) {
  const size_t ranks = static_cast<size_t>(size_), each = values.size_bytes(), bytes = sizeof(Record) + each;
  std::vector<std::byte> packed(bytes), all(bytes * ranks);
  const auto copy = [](void* to, const void* from, size_t count) {
    if (count > 0) std::memcpy(to, from, count);
  };
  copy(packed.data(), &mine, sizeof(Record));
  copy(packed.data() + sizeof(Record), values.data(), each);
  exchange_part({packed.data(), 1, static_cast<int64_t>(bytes)}, all, purpose);
  Exchanged<Record> result{std::vector<Record>(ranks), std::vector<double>(values.size() * ranks)};
  for (size_t r = 0; r < ranks; ++r) {
    copy(&result.records[r], all.data() + r * bytes, sizeof(Record));
    copy(result.values.data() + r * values.size(), all.data() + r * bytes + sizeof(Record), each);
  }
  return result;
}

}  // namespace sherd
