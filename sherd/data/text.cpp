#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "sherd/base/error.h"
#include "sherd/data/file_bytes.h"
#include "sherd/data/find_files.h"
#include "sherd/data/token_source.h"

namespace sherd {
namespace {

/// Holds paths and offsets; opens a file for each read, so that any number of files costs no descriptors.
class Text final : public TokenSource {
 public:
  explicit Text(std::vector<std::string> paths) {
    for (std::string& path : paths) {
      const int64_t bytes = FileBytes(path).size();
      if (bytes == 0) continue;
      files_.push_back({std::move(path), size_, bytes});
      size_ += bytes;
    }
  }

  int64_t size() const override { return size_; }

  void read(int64_t first, int64_t count, int64_t* out) const override {
    SHERD_CHECK(first >= 0 && count >= 0 && first <= size_ - count);
    auto file = std::upper_bound(files_.begin(), files_.end(), first,
                                 [](int64_t position, const File& f) { return position < f.first; });
    if (count > 0) --file;
    for (; count > 0; ++file) {
      const int64_t begin = first - file->first;
      const int64_t piece = std::min(count, file->bytes - begin);
      read_file(*file, begin, piece, out);
      first += piece;
      count -= piece;
      out += piece;
    }
  }

  int64_t vocab_bound() const override { return 256; }
  TokenKind kind() const override { return TokenKind::bytes; }
  std::string name() const override { return "text"; }

 private:
  struct File {
    std::string path;
    int64_t first;  // its place in the stream
    int64_t bytes;
  };

  static void read_file(const File& file, int64_t begin, int64_t count, int64_t* out) {
    const std::unique_ptr<FileBytes> bytes = reopen(file);
    std::array<uint8_t, 8192> buffer;
    while (count > 0) {
      const int64_t piece = std::min<int64_t>(count, buffer.size());
      bytes->read(begin, piece, buffer.data());
      std::copy_n(buffer.begin(), piece, out);
      begin += piece;
      count -= piece;
      out += piece;
    }
  }

  /// A file that is gone or has another size by now is a fault, no longer a mistake in the configuration.
  static std::unique_ptr<FileBytes> reopen(const File& file) {
    std::unique_ptr<FileBytes> bytes;
    std::string reason;
    try {
      bytes = std::make_unique<FileBytes>(file.path);
      if (bytes->size() != file.bytes) reason = fmt::format("{} bytes where {} were", bytes->size(), file.bytes);
    } catch (const ConfigError& error) {
      reason = error.what();
    }
    if (reason.empty()) return bytes;
    fault("data",
          "got a changed file {} ({}), expected it as it was at the start; try not to change data while a run reads it",
          file.path, reason);
  }

  std::vector<File> files_;  // without empty ones
  int64_t size_ = 0;
};

}  // namespace

std::shared_ptr<const TokenSource> open_text(const std::vector<std::string>& patterns) {
  auto text = std::make_shared<Text>(find_files(patterns));
  if (text->size() == 0) {
    config_error("data", "got no text in {}, expected at least one byte; try another file, folder or glob",
                 fmt::join(patterns, ", "));
  }
  return text;
}

}  // namespace sherd
