#include <algorithm>
#include <vector>

#include "sherd/base/error.h"
#include "sherd/data/token_source.h"

namespace sherd {

void check_vocab(const TokenSource& source, int64_t vocab) {
  if (source.kind() == TokenKind::bytes && vocab != 256) {
    config_error(
        "data",
        "got bytes of text for a model whose vocabulary is not bytes (it has {} tokens), expected a vocabulary "
        "of 256; try model.preset bytes-10m, or data.tokens with the ids of the model's own tokenizer",
        vocab);
  }
  if (source.vocab_bound() <= vocab) return;
  constexpr int64_t kPiece = 16384;  // stays in the second-level cache
  std::vector<int64_t> ids(kPiece);
  for (int64_t first = 0; first < source.size(); first += kPiece) {
    const int64_t count = std::min(kPiece, source.size() - first);
    source.read(first, count, ids.data());
    int64_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, ids[i]);
    if (largest < vocab) continue;
    const int64_t at = std::find_if(ids.begin(), ids.end(), [&](int64_t id) { return id >= vocab; }) - ids.begin();
    config_error(
        "data",
        "got token {} at position {} of {}, expected ids below the model's vocabulary of {}; try the tokens of "
        "this model's tokenizer, the right data.token_type, or a larger model.vocab",
        ids[at], first + at, source.name(), vocab);
  }
}

}  // namespace sherd
