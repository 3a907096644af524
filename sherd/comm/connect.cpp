#include "sherd/comm/connect.h"

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/comm/c10d_transport.h"
#include "sherd/comm/gloo_backend.h"
#include "sherd/comm/host_segment.h"

namespace sherd {

void validate_transport(std::string_view kind) {
  if (std::find(std::begin(kTransports), std::end(kTransports), kind) == std::end(kTransports))
    config_error("transport", "got '{}', expected auto, host or gloo; try auto", kind);
}

std::shared_ptr<Transport> connect(const World& world, std::string_view kind) {
  validate_transport(kind);
  if (world.size == 1) return solo_transport();
  if (kind != "gloo") {
    if (auto host = HostSegment::connect(world)) return host;
    if (kind == "host")
      config_error("transport", "got 'host', but the ranks are not on one host; try 'auto' or 'gloo'");
  }
  return std::make_shared<C10dTransport>(world, gloo_backend, "gloo");
}

}  // namespace sherd
