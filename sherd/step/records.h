// Exchanges of typed records: every rank's, and some numbers beside it.
#pragma once

#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "sherd/comm/transport.h"

namespace sherd {

template <class Record>
struct Received {
  std::vector<Record> records;  // by rank
  std::vector<double> numbers;  // rank by rank
};

/// All ranks' records in rank order, each with as many `numbers`. Collective, for a purpose that all ranks are to have.
template <class Record>
Received<Record> exchange_records(Transport& transport, std::string_view purpose, const Record& mine,
                                  std::span<const double> numbers = {}) {
  static_assert(std::is_trivially_copyable_v<Record>);
  constexpr size_t kWords = (sizeof(Record) + sizeof(double) - 1) / sizeof(double);
  std::vector<double> words(kWords + numbers.size());
  std::memcpy(words.data(), &mine, sizeof(Record));
  std::copy(numbers.begin(), numbers.end(), words.begin() + kWords);
  const std::vector<double> all = transport.exchange_for(purpose, words);
  Received<Record> received;
  for (size_t rank = 0; rank < all.size() / words.size(); ++rank) {
    const double* theirs = all.data() + rank * words.size();
    std::memcpy(static_cast<void*>(&received.records.emplace_back()), theirs, sizeof(Record));
    received.numbers.insert(received.numbers.end(), theirs + kWords, theirs + words.size());
  }
  return received;
}

}  // namespace sherd
