// Which tokens of a stream are targets: a mask file, and documents.
//
// A mask says token by token what the loss counts (a chat's answers, but not its questions). A separator ends a
// document: the token after it begins another one, and is no target, since nothing before it tells what it is.
// (Attention still sees the documents before it in the row.)
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "sherd/data/token_source.h"

namespace sherd {

struct TargetRules {
  std::string mask;                  // a file of one byte a token, 0: not a target; "": none
  std::optional<int64_t> separator;  // a token id
};

/// The same stream with these targets; `source` itself if there are no rules. Reads go through the page cache and hold
/// nothing. Throws ConfigError for a mask that cannot be read or is not as long as the stream, and for a separator that
/// is no token.
std::shared_ptr<const TokenSource> with_target_rules(std::shared_ptr<const TokenSource> source,
                                                     const TargetRules& rules);

}  // namespace sherd
