// Reading pieces of a file whose size is known.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace sherd {

/// An open regular file. Reads are positioned, so that threads may share it, and copy from the page cache: the
/// file's pages belong to the host, not to the process, and a file that shrinks is an error instead of a signal.
class FileBytes {
 public:
  /// Throws ConfigError when the file is missing, not a regular file, or not readable.
  explicit FileBytes(const std::string& path);
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  const std::string& path() const { return path_; }

  /// Bytes when it was opened.
  int64_t size() const { return size_; }

  /// Copies bytes [first, first + count) to `out`. Throws FaultError when they are not there any more.
  void read(int64_t first, int64_t count, void* out) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

}  // namespace sherd
