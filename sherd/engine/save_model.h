// The whole weights from all ranks into one Hugging Face file: every rank writes its own rows at their place, rank 0
// the model's buffers.
#pragma once

#include <string>

#include "sherd/engine/engine.h"

namespace sherd {

/// Writes `folder`/model.safetensors; rank 0 creates and commits it. Collective; the folder exists and is shared by all
/// ranks. No rank holds more than its own shards. Throws FaultError.
void save_weights(Engine& engine, const std::string& folder);

}  // namespace sherd
