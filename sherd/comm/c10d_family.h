// What a c10d transport shares with its subgroups beside data, all of it in the store: aborts, who is where, who has
// finished, and how ranks meet to recover.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sherd/comm/peer_watch.h"
#include "sherd/comm/rendezvous.h"
#include "sherd/comm/topology.h"

namespace sherd {

class C10dFamily {
 public:
  /// Collective over the world, whose store nobody else uses: ranks of one host learn each other's process numbers.
  C10dFamily(const World& world, std::string name);

  const World& world() const { return world_; }
  const std::string& name() const { return name_; }
  /// The hosts of the ranks, as far as they know; declared ones count.
  const Topology& topology() const { return *topology_; }
  const PeerWatch& watch() const { return watch_; }
  /// How many aborts are forgotten.
  uint64_t generation() const { return generation_; }

  /// The first cause stays. Nothing where there is nobody left to tell.
  void tell_abort(std::string_view cause) noexcept;
  /// The cause of an abort since the last recovery; nothing where there is none, or where the store is gone.
  std::optional<std::string> heard() const noexcept;

  /// Where this rank waits, for others' errors; "" where it does no more.
  void tell_place(const std::string& place) noexcept;
  void finish() noexcept;
  bool has_finished(int rank) const noexcept;
  /// "rank 0 has finished, rank 1 is in ...; ", or "" where nothing can be known.
  std::string who_is_where() const;

  enum class Meeting { recovered, nothing_to_recover };
  /// Waits for all ranks. Throws FaultError on all of them where one does not come. After `recovered` each goes on with
  /// forget_abort().
  Meeting meet_for_recovery();
  void forget_abort() { ++generation_; }

 private:
  std::string abort_key() const;
  void await(const std::string& key, int rank) const;
  std::string verdict_of_meeting();

  World world_;
  std::string name_;
  PeerWatch watch_;
  std::optional<Topology> topology_;
  uint64_t generation_ = 0;
  uint64_t meetings_ = 0;
};

}  // namespace sherd
