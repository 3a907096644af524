// A file descriptor that is closed with its owner, and whole reads and writes at an offset.
//
// Opening is where users are wrong: ConfigError. After that the disk is: FaultError. Both name the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sherd {

class File {
 public:
  /// Opens for reading. Throws ConfigError.
  static File open_for_reading(const std::string& path);

  /// Opens an existing file for reading and writing. Throws ConfigError.
  static File open_for_writing(const std::string& path);

  /// Creates the file, or empties it. Throws ConfigError.
  static File create(const std::string& path);

  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size() const;

  /// Sets the size and reserves the blocks, so that a full disk shows here. Throws FaultError.
  void reserve(uint64_t bytes);

  /// All of `bytes` at `offset`. Safe from several threads. Throws FaultError (also at the end of the file).
  void read(void* out, size_t bytes, uint64_t offset) const;
  void write(const void* in, size_t bytes, uint64_t offset);

  /// fsync. Throws FaultError.
  void sync();

 private:
  File(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

/// Renames over `to` and makes the folder's entry durable. Throws FaultError.
void rename_durably(const std::string& from, const std::string& to);

/// The whole of a text file. Throws ConfigError if it cannot be opened, FaultError if it cannot be read.
std::string read_text(const std::string& path);

/// Replaces a file in one move: a reader sees the old text or the new. Throws ConfigError, FaultError.
void write_text(const std::string& path, const std::string& text);

}  // namespace sherd
