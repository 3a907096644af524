// Training and validation parts of one stream.
#pragma once

#include <memory>

#include "sherd/data/token_source.h"

namespace sherd {

struct Split {
  std::shared_ptr<const TokenSource> train;
  std::shared_ptr<const TokenSource> validation;  // null when no share was asked for
};

/// The last `validation` (0 <= share < 1) of the stream, rounded down to whole tokens, and all before it. Both are
/// views that keep `source` alive. Each must hold a row of context + 1 tokens, else ConfigError.
Split split_source(std::shared_ptr<const TokenSource> source, double validation, int64_t context);

}  // namespace sherd
