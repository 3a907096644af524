// Which ranks are on one host, and whether they share memory there. What a mesh asks for is in mesh.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sherd {

class Topology {
 public:
  /// What the ranks of a host have: buffers of their own, or memory that each of them can map.
  enum class Memory { separate, shared };

  /// Ranks r and s are on one host where hosts[r] == hosts[s]. Hosts are numbered as their first ranks come.
  Topology(std::span<const uint64_t> hosts, Memory memory);
  static Topology one_host(int ranks, Memory memory);

  int ranks() const { return static_cast<int>(host_of_.size()); }
  int hosts() const { return static_cast<int>(ranks_of_.size()); }
  Memory memory() const { return memory_; }
  /// Whether every rank can map what any of them writes.
  bool one_memory() const { return memory_ == Memory::shared && hosts() == 1; }

  int host_of(int rank) const { return host_of_[static_cast<size_t>(rank)]; }
  /// Ascending.
  const std::vector<int>& ranks_of(int host) const { return ranks_of_[static_cast<size_t>(host)]; }
  /// The ranks that have the same place among those of their hosts, ascending; hosts with fewer ranks have none there.
  std::vector<int> across(int rank) const;
  /// Of some of the ranks, ascending.
  Topology among(std::span<const int> ranks) const;

 private:
  std::vector<int> host_of_;
  std::vector<std::vector<int>> ranks_of_;
  Memory memory_;
};

}  // namespace sherd
