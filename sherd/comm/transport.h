// How ranks talk and how data moves between them: control and collectives of one group of ranks, on one topology.
//
//   solo      one rank: nothing moves
//   host      ranks of one host: shared memory (see host_segment.h), parameters are never copied
//   threads   ranks as threads of one process, private buffers (tests)
//   gloo      c10d's Gloo, or any other c10d::Backend that a caller brings
//   hosts     one of the two above between hosts, shared memory inside each (see hosts_transport.h)
//
// No caller asks which it is: who needs memory that all ranks map asks the topology.
#pragma once

#include <memory>
#include <vector>

#include "sherd/comm/collectives.h"
#include "sherd/comm/control.h"
#include "sherd/comm/topology.h"

namespace sherd {

class HostSegment;

class Transport : public Control, public Collectives {
 public:
  Transport(int rank, Topology topology) : Control(rank, topology.ranks()), topology_(std::move(topology)) {}

  const Topology& topology() const { return topology_; }
  /// The memory that all ranks share, where topology().one_memory(). Lives as long as this.
  HostSegment& host_memory();

  /// A transport among `ranks` of this one: ascending, this rank among them. Collective over them; disjoint groups may
  /// be made at once. It belongs to this one's family: an abort of any member reaches all waits of all members, and
  /// recover() of any is that of all; so it ends on all its ranks or on none. One rank alone gets solo.
  std::shared_ptr<Transport> subgroup(const std::vector<int>& ranks);

 protected:
  virtual HostSegment* shared() { return nullptr; }
  /// For who knows better where the ranks of a part of it are.
  static void place(Transport& part, Topology topology) { part.topology_ = std::move(topology); }
  /// Of at least two ranks, among which this one has `place`.
  virtual std::shared_ptr<Transport> make_subgroup(const std::vector<int>& ranks, int place) = 0;

 private:
  Topology topology_;
};

/// One rank alone.
std::unique_ptr<Transport> solo_transport();

}  // namespace sherd
