#include "sherd/data/target_rules.h"

#include <array>
#include <utility>

#include "sherd/base/error.h"
#include "sherd/data/file_bytes.h"

namespace sherd {
namespace {

/// Forwards to another stream, and answers read_targets() itself.
class RuledSource final : public TokenSource {
 public:
  RuledSource(std::shared_ptr<const TokenSource> source, const TargetRules& rules)
      : source_(std::move(source)), separator_(rules.separator) {
    if (!rules.mask.empty()) mask_ = std::make_unique<FileBytes>(rules.mask);
    if (mask_ && mask_->size() != source_->size()) {
      config_error("data.mask",
                   "got {} of {} bytes, expected one byte a token: {} as in {}; try the mask of these tokens",
                   rules.mask, mask_->size(), source_->size(), source_->name());
    }
    if (separator_ && *separator_ < 0)
      config_error("data.separator", "got {}, expected a token id; try the end-of-text token", *separator_);
  }

  int64_t size() const override { return source_->size(); }
  void read(int64_t first, int64_t count, int64_t* out) const override { source_->read(first, count, out); }
  int64_t vocab_bound() const override { return source_->vocab_bound(); }
  TokenKind kind() const override { return source_->kind(); }
  std::string name() const override { return source_->name(); }
  bool all_are_targets() const override { return false; }

  void read_targets(int64_t first, int64_t count, uint8_t* out) const override {
    SHERD_CHECK(first >= 0 && count >= 0 && first <= size() - count);
    std::fill_n(out, count, uint8_t{1});
    if (mask_) {
      mask_->read(first, count, out);
      std::transform(out, out + count, out, [](uint8_t value) { return value != 0; });
    }
    if (separator_) drop_first_tokens(first, count, out);
  }

 private:
  /// A token is the first of a document if the one before it is the separator, or if there is none.
  void drop_first_tokens(int64_t first, int64_t count, uint8_t* out) const {
    if (first == 0 && count > 0) out[0] = 0;
    std::array<int64_t, 4096> before;
    for (int64_t done = first == 0 ? 1 : 0; done < count;) {
      const int64_t piece = std::min<int64_t>(count - done, before.size());
      source_->read(first + done - 1, piece, before.data());
      for (int64_t i = 0; i < piece; ++i)
        if (before[static_cast<size_t>(i)] == *separator_) out[done + i] = 0;
      done += piece;
    }
  }

  std::shared_ptr<const TokenSource> source_;
  std::unique_ptr<FileBytes> mask_;
  std::optional<int64_t> separator_;
};

}  // namespace

std::shared_ptr<const TokenSource> with_target_rules(std::shared_ptr<const TokenSource> source,
                                                     const TargetRules& rules) {
  if (rules.mask.empty() && !rules.separator) return source;
  return std::make_shared<RuledSource>(std::move(source), rules);
}

}  // namespace sherd
