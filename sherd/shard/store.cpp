#include "sherd/shard/store.h"

#include "sherd/base/error.h"
#include "sherd/shard/private_store.h"
#include "sherd/shard/shared_store.h"

namespace sherd {

std::unique_ptr<Store> make_store(Transport& transport, Ledger& ledger, StorePlan plan) {
  if (HostSegment* host = transport.host_segment()) {
    if (!plan.device.is_cpu())
      config_error("transport", "got 'host' with parameters on {}, expected cpu; try transport gloo",
                   plan.device.str());
    return std::make_unique<SharedStore>(*host, ledger, std::move(plan));
  }
  return std::make_unique<PrivateStore>(transport, ledger, std::move(plan));
}

}  // namespace sherd
