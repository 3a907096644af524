#include "sherd/shard/store.h"

#include "sherd/base/error.h"
#include "sherd/shard/private_store.h"
#include "sherd/shard/shared_store.h"

namespace sherd {

std::unique_ptr<Store> make_store(StoreTransports transports, Ledger& ledger, StorePlan plan) {
  if (HostSegment* host = transports.shard->host_segment()) {
    SHERD_CHECK(transports.replicas == nullptr);  // On one host there is one copy, whatever the mesh.
    if (!plan.device.is_cpu())
      config_error("transport", "got 'host' with parameters on {}, expected cpu; try transport gloo",
                   plan.device.str());
    return std::make_unique<SharedStore>(*host, ledger, std::move(plan));
  }
  return std::make_unique<PrivateStore>(std::move(transports), ledger, std::move(plan));
}

std::unique_ptr<Store> make_store(Transport& transport, Ledger& ledger, StorePlan plan) {
  const auto lent = std::shared_ptr<Transport>(std::shared_ptr<void>(), &transport);
  return make_store({lent, nullptr}, ledger, std::move(plan));
}

}  // namespace sherd
