#include "sherd/comm/messages.h"

#include <memory>

#include "sherd/base/error.h"

namespace sherd {

void Messages::exchange_part(const Part& mine, std::span<std::byte> all, std::string_view purpose) {
  SHERD_CHECK(all.size() == mine.bytes().size() * static_cast<size_t>(size_));
  const auto restore = [this](void*) { purpose_ = {}; };
  const std::unique_ptr<void, decltype(restore)> guard(this, restore);
  purpose_ = purpose;
  run_exchange(mine, all);
}

void Messages::exchange_bytes(std::span<const std::byte> mine, std::span<std::byte> all, std::string_view purpose) {
  exchange_part({mine.data(), static_cast<int64_t>(mine.size()), 1}, all, purpose);
}

std::vector<double> Messages::exchange(std::span<const double> values, std::string_view purpose) {
  std::vector<double> all(values.size() * static_cast<size_t>(size_));
  exchange_part({values.data(), static_cast<int64_t>(values.size()), sizeof(double)},
                std::as_writable_bytes(std::span(all)), purpose);
  return all;
}

void barrier(Messages& messages, std::string_view purpose) { messages.exchange_bytes({}, {}, purpose); }

}  // namespace sherd
