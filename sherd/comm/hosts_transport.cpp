#include "sherd/comm/hosts_transport.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/base/fnv.h"

namespace sherd {
namespace {

/// A number for each rank's host.
std::vector<uint64_t> declared_hosts(const World& world, Transport& whole) {
  Fnv host;
  host.add(world.host.empty() ? fmt::format("{}", whole.topology().host_of(whole.rank())) : "named " + world.host);
  return whole.exchange(host.value(), "the hosts of the ranks");
}

}  // namespace

std::shared_ptr<HostsTransport> HostsTransport::join(const World& world, std::shared_ptr<Transport> whole) {
  const std::vector<uint64_t> hosts = declared_hosts(world, *whole);
  place(*whole, {hosts, Topology::Memory::separate});
  const Topology topology(hosts, Topology::Memory::shared);
  const std::vector<int>& beside = topology.ranks_of(topology.host_of(world.rank));
  std::shared_ptr<HostSegment> inside;
  if (beside.size() > 1) {
    World host = with_fresh_store(world, fmt::format("host/{}", fmt::join(beside, ",")));
    host.rank = static_cast<int>(std::find(beside.begin(), beside.end(), world.rank) - beside.begin());
    host.size = static_cast<int>(beside.size());
    inside = HostSegment::connect(host);
    if (!inside) {
      const std::string cause =
          fmt::format("ranks {} count as on one host, and cannot share memory there", fmt::join(beside, ", "));
      whole->abort(cause);
      fault("hosts", "{}; try other names of hosts", cause);
    }
    inside->listen_to(*whole, beside);
  }
  return std::shared_ptr<HostsTransport>(new HostsTransport(std::move(whole), std::move(inside), world.rank, topology));
}

HostsTransport::HostsTransport(std::shared_ptr<Transport> whole, std::shared_ptr<HostSegment> inside, int rank,
                               Topology topology)
    : Transport(rank, std::move(topology)), whole_(std::move(whole)), inside_(std::move(inside)) {
  take_over(*whole_);
  if (inside_) take_over(*inside_);
}

int64_t HostsTransport::bytes_sent() const { return whole_->bytes_sent() + (inside_ ? inside_->bytes_sent() : 0); }

void HostsTransport::finish() noexcept {
  whole_->finish();
  if (inside_) inside_->finish();
}

std::shared_ptr<Transport> HostsTransport::make_subgroup(const std::vector<int>& ranks, int) {
  const std::vector<int>& beside = topology().ranks_of(topology().host_of(rank()));
  if (!std::includes(beside.begin(), beside.end(), ranks.begin(), ranks.end())) return whole_->subgroup(ranks);
  std::vector<int> places;
  for (const int rank : ranks)
    places.push_back(static_cast<int>(std::lower_bound(beside.begin(), beside.end(), rank) - beside.begin()));
  return inside_->subgroup(places);
}

// The whole knows which cause was the first of all.
void HostsTransport::tell_abort(std::string_view cause) noexcept {
  Control::tell_abort(*whole_, cause);
  if (!inside_) return;
  try {
    inside_->pass_on(whole_->heard().value_or(fmt::format("[hosts] rank {} gave up: {}", rank(), cause)));
  } catch (...) {
    inside_->pass_on("out of memory");
  }
}

void HostsTransport::run_recovery() {
  try {
    if (inside_) Control::run_recovery(*inside_);
  } catch (const FaultError& error) {
    abort(error.what());
    throw;
  }
  Control::run_recovery(*whole_);
}

void HostsTransport::show_call() noexcept {
  if (inside_) Control::show_call(*inside_);
}

}  // namespace sherd
