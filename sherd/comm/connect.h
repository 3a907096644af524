// Chooses and makes the transport.
#pragma once

#include <memory>
#include <string_view>

#include "sherd/comm/rendezvous.h"
#include "sherd/comm/transport.h"

namespace sherd {

/// The kinds that connect() knows.
inline constexpr std::string_view kTransports[] = {"auto", "host", "gloo"};

/// Connects the ranks of `world` by `kind`: "host", "gloo", or "auto" (host where all ranks prove to be on one host by
/// receiving a descriptor and none declares another host, else gloo). One rank alone is always solo. Collective. Throws
/// ConfigError for an unknown kind or for "host" across hosts, FaultError when a peer does not come.
std::shared_ptr<Transport> connect(const World& world, std::string_view kind);

/// Throws ConfigError where connect() would not know `kind`.
void validate_transport(std::string_view kind);

}  // namespace sherd
