#include <array>
#include <bit>
#include <limits>

#include "sherd/base/error.h"
#include "sherd/data/file_bytes.h"
#include "sherd/data/token_source.h"

namespace sherd {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are read as they lie");

template <class Id>
class TokenFile final : public TokenSource {
 public:
  explicit TokenFile(const std::string& path) : file_(path) {
    constexpr const char* type = sizeof(Id) == 2 ? "uint16" : "uint32";
    constexpr const char* other = sizeof(Id) == 2 ? "uint32" : "uint16";
    if (file_.size() == 0)
      config_error("data", "got {} of 0 bytes, expected {} tokens; try to write it again", path, type);
    if (file_.size() % sizeof(Id) != 0) {
      config_error(
          "data",
          "got {} of {} bytes, expected a multiple of {} ({} tokens); try data.token_type {}, or to write it again",
          path, file_.size(), sizeof(Id), type, other);
    }
  }

  int64_t size() const override { return file_.size() / static_cast<int64_t>(sizeof(Id)); }

  void read(int64_t first, int64_t count, int64_t* out) const override {
    SHERD_CHECK(first >= 0 && count >= 0 && first <= size() - count);
    std::array<Id, 16384> ids;
    while (count > 0) {
      const int64_t piece = std::min<int64_t>(count, ids.size());
      file_.read(first * sizeof(Id), piece * sizeof(Id), ids.data());
      std::copy_n(ids.begin(), piece, out);
      first += piece;
      count -= piece;
      out += piece;
    }
  }

  int64_t vocab_bound() const override { return int64_t{std::numeric_limits<Id>::max()} + 1; }
  std::string name() const override { return file_.path(); }

 private:
  FileBytes file_;
};

}  // namespace

TokenType parse_token_type(const std::string& name) {
  return named(kTokenTypeNames, name, "data.token_type", "uint16 for vocabularies up to 65536");
}

std::shared_ptr<const TokenSource> open_token_file(const std::string& path, TokenType type) {
  if (type == TokenType::uint16) return std::make_shared<TokenFile<uint16_t>>(path);
  return std::make_shared<TokenFile<uint32_t>>(path);
}

}  // namespace sherd
