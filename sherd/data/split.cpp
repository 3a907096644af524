#include "sherd/data/split.h"

#include <utility>

#include "sherd/base/error.h"

namespace sherd {
namespace {

/// Tokens [first, first + size) of another source.
class Part final : public TokenSource {
 public:
  Part(std::shared_ptr<const TokenSource> whole, int64_t first, int64_t size)
      : whole_(std::move(whole)), first_(first), size_(size) {}

  int64_t size() const override { return size_; }
  void read(int64_t first, int64_t count, int64_t* out) const override {
    SHERD_CHECK(first >= 0 && count >= 0 && first <= size_ - count);
    whole_->read(first_ + first, count, out);
  }
  void read_targets(int64_t first, int64_t count, uint8_t* out) const override {
    SHERD_CHECK(first >= 0 && count >= 0 && first <= size_ - count);
    whole_->read_targets(first_ + first, count, out);
  }
  bool all_are_targets() const override { return whole_->all_are_targets(); }
  int64_t vocab_bound() const override { return whole_->vocab_bound(); }
  TokenKind kind() const override { return whole_->kind(); }
  std::string name() const override { return whole_->name(); }

 private:
  std::shared_ptr<const TokenSource> whole_;
  int64_t first_;
  int64_t size_;
};

}  // namespace

Split split_source(std::shared_ptr<const TokenSource> source, double validation, int64_t context) {
  if (!(validation >= 0 && validation < 1)) {
    config_error("data", "got data.validation {}, expected a share of at least 0 and below 1; try 0.01", validation);
  }
  const int64_t size = source->size();
  const int64_t held = static_cast<int64_t>(static_cast<double>(size) * validation);
  const auto must_hold_a_row = [&](int64_t tokens, const char* part, const char* fix) {
    if (tokens > context) return;
    config_error("data", "got {} {} tokens ({} of {} tokens in {}), expected at least context + 1 = {}; try {}", tokens,
                 part, validation, size, source->name(), context + 1, fix);
  };
  if (validation == 0) {
    must_hold_a_row(size, "training", "more data or a smaller data.context");
    return {std::move(source), nullptr};
  }
  must_hold_a_row(held, "validation", "a larger data.validation, or 0");
  must_hold_a_row(size - held, "training", "a smaller data.validation");
  auto train = std::make_shared<Part>(source, 0, size - held);
  auto rest = std::make_shared<Part>(source, size - held, held);
  return {std::move(train), std::move(rest)};
}

}  // namespace sherd
