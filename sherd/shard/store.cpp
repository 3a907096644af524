#include "sherd/shard/store.h"

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/shard/private_store.h"
#include "sherd/shard/shared_store.h"

namespace sherd {

bool GroupPlan::any(Role role) const {
  return std::any_of(roles.begin(), roles.end(), [role](Role r) { return r >= role; });
}

bool GroupPlan::set_roles(Roles wanted) {
  SHERD_CHECK(wanted.size() == layout.parameters.size());
  std::vector<bool> places;
  bool changed = roles.empty();
  for (size_t p = 0; p < wanted.size(); ++p) {
    places.push_back(wanted[p] != Role::frozen);
    changed = changed || (roles[p] != Role::frozen) != places[p];
  }
  roles = std::move(wanted);
  if (changed) gradients = with_rows_of(layout, places);
  return changed;
}

namespace {

void check_codec(const StorePlan& plan, const Transport& transport) {
  if (plan.codec == Codec::identity) return;
  if (transport.size() == 1 || transport.topology().one_memory())
    config_error("codec", "got {} where {}, expected identity: no gradient is sent; try codec identity",
                 name_of(plan.codec), transport.size() == 1 ? "there is one rank" : "all ranks share memory");
  const auto changes = [&](const GroupPlan& group) { return wire_type(plan.codec, group.reduce) != group.reduce; };
  if (std::none_of(plan.groups.begin(), plan.groups.end(), changes))
    config_error("codec", "got {} with gradients that are reduced in {}, expected fp32 ones; try codec identity",
                 name_of(plan.codec), toString(plan.groups[0].reduce));
}

}  // namespace

std::unique_ptr<Store> make_store(StoreTransports transports, Ledger& ledger, StorePlan plan) {
  check_codec(plan, *transports.shard);
  if (transports.shard->topology().one_memory()) {
    SHERD_CHECK(transports.replicas == nullptr);  // There is one copy, whatever the mesh.
    if (!plan.device.is_cpu())
      config_error("transport", "got 'host' with parameters on {}, expected cpu; try transport gloo",
                   plan.device.str());
    return std::make_unique<SharedStore>(transports.shard->host_memory(), ledger, std::move(plan));
  }
  return std::make_unique<PrivateStore>(std::move(transports), ledger, std::move(plan));
}

std::unique_ptr<Store> make_store(Transport& transport, Ledger& ledger, StorePlan plan) {
  const auto lent = std::shared_ptr<Transport>(std::shared_ptr<void>(), &transport);
  return make_store({lent, nullptr}, ledger, std::move(plan));
}

}  // namespace sherd
