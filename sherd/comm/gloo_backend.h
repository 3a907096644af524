// Makes c10d's Gloo process group. The only source that sees Gloo's headers.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "sherd/comm/rendezvous.h"

namespace sherd {

/// A Gloo group over all ranks of `world` (collective; no two over the same store). Its abort() ends what is under way,
/// here and at the peers, with errors. SIGPIPE is ignored from then on, where it had no handler. Throws FaultError when
/// a peer does not come in time.
c10::intrusive_ptr<c10d::Backend> gloo_backend(const World& world);

}  // namespace sherd
