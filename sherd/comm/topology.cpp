#include "sherd/comm/topology.h"

#include <algorithm>

namespace sherd {

Topology::Topology(std::span<const uint64_t> hosts, Memory memory) : memory_(memory) {
  std::vector<uint64_t> known;
  for (const uint64_t host : hosts) {
    const auto place = std::find(known.begin(), known.end(), host) - known.begin();
    if (place == static_cast<std::ptrdiff_t>(known.size())) {
      known.push_back(host);
      ranks_of_.emplace_back();
    }
    ranks_of_[static_cast<size_t>(place)].push_back(ranks());
    host_of_.push_back(static_cast<int>(place));
  }
}

Topology Topology::one_host(int ranks, Memory memory) {
  return {std::vector<uint64_t>(static_cast<size_t>(ranks), 0), memory};
}

std::vector<int> Topology::across(int rank) const {
  const std::vector<int>& beside = ranks_of(host_of(rank));
  const auto place = static_cast<size_t>(std::find(beside.begin(), beside.end(), rank) - beside.begin());
  std::vector<int> result;
  for (const auto& ranks : ranks_of_)
    if (place < ranks.size()) result.push_back(ranks[place]);
  std::sort(result.begin(), result.end());
  return result;
}

Topology Topology::among(std::span<const int> ranks) const {
  std::vector<uint64_t> hosts;
  for (const int rank : ranks) hosts.push_back(static_cast<uint64_t>(host_of(rank)));
  return {hosts, memory_};
}

}  // namespace sherd
