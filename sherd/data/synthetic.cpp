#include <limits>

#include "sherd/base/error.h"
#include "sherd/data/hash.h"
#include "sherd/data/token_source.h"

namespace sherd {
namespace {

// The chain of successors starts anew with each block, so that any token is a few hashes away.
constexpr int64_t kBlock = 256;
constexpr int64_t kEndless = int64_t{1} << 62;

class Synthetic final : public TokenSource {
 public:
  Synthetic(int64_t vocab, uint64_t seed) : vocab_(vocab), seed_(seed) {}

  int64_t size() const override { return kEndless; }

  void read(int64_t first, int64_t count, int64_t* out) const override {
    SHERD_CHECK(first >= 0 && count >= 0 && first <= kEndless - count);
    int64_t token = 0;
    for (int64_t position = first / kBlock * kBlock; position < first + count; ++position) {
      const uint64_t bits = random_bits(seed_, position);
      if (position % kBlock == 0 || bits % 5 == 0) {
        token = (bits >> 16) % vocab_;
      } else {
        token = (5 * token + 7) % vocab_;
      }
      if (position >= first) out[position - first] = token;
    }
  }

  int64_t vocab_bound() const override { return vocab_; }
  std::string name() const override { return "synthetic"; }

 private:
  int64_t vocab_;
  uint64_t seed_;
};

}  // namespace

std::shared_ptr<const TokenSource> synthetic_source(int64_t vocab, uint64_t seed) {
  constexpr int64_t kMaxVocab = std::numeric_limits<int32_t>::max();
  if (vocab < 1 || vocab > kMaxVocab) {
    config_error("data", "got a vocabulary of {}, expected 1 to {}; try model.vocab 256", vocab, kMaxVocab);
  }
  return std::make_shared<Synthetic>(vocab, seed);
}

}  // namespace sherd
