#include "sherd/checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "sherd/base/error.h"

namespace sherd {
namespace {

int open_or_throw(const std::string& path, int flags, std::string_view purpose) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) config_error(path, "cannot be {}: {}; try another path", purpose, std::strerror(errno));
  return descriptor;
}

// Linux moves at most this much in one call.
constexpr size_t kLargestTransfer = size_t{1} << 30;

}  // namespace

File File::open_for_reading(const std::string& path) {
  File file(path, open_or_throw(path, O_RDONLY, "read"));
  struct stat status {};
  if (::fstat(file.descriptor_, &status) != 0) fault_errno(path, "fstat");
  if (!S_ISREG(status.st_mode))
    config_error(path, "got something that is not a file, expected a file; try another path");
  return file;
}

File File::open_for_writing(const std::string& path) { return {path, open_or_throw(path, O_RDWR, "written")}; }

File File::create(const std::string& path) {
  return {path, open_or_throw(path, O_RDWR | O_CREAT | O_TRUNC, "created")};
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

uint64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fault_errno(path_, "fstat");
  return static_cast<uint64_t>(status.st_size);
}

void File::reserve(uint64_t bytes) {
  const auto length = static_cast<off_t>(bytes);
  if (::ftruncate(descriptor_, length) != 0) fault_errno(path_, fmt::format("cannot make a file of {} bytes", bytes));
  if (bytes == 0 || ::fallocate(descriptor_, 0, 0, length) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) fault_errno(path_, fmt::format("cannot reserve {} bytes", bytes));
}

void File::read(void* out, size_t bytes, uint64_t offset) const {
  auto* at = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t moved = ::pread(descriptor_, at, std::min(bytes, kLargestTransfer), static_cast<off_t>(offset));
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) fault_errno(path_, fmt::format("reading at byte {}", offset));
    if (moved == 0) fault(path_, "got the end of the file at byte {}, expected {} more bytes", offset, bytes);
    at += moved, offset += static_cast<uint64_t>(moved), bytes -= static_cast<size_t>(moved);
  }
}

void File::write(const void* in, size_t bytes, uint64_t offset) {
  const auto* at = static_cast<const char*>(in);
  while (bytes > 0) {
    const ssize_t moved = ::pwrite(descriptor_, at, std::min(bytes, kLargestTransfer), static_cast<off_t>(offset));
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) fault_errno(path_, fmt::format("writing at byte {}", offset));
    if (moved == 0) fault(path_, "got no byte written at byte {}, expected {}", offset, bytes);
    at += moved, offset += static_cast<uint64_t>(moved), bytes -= static_cast<size_t>(moved);
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0) fault_errno(path_, "fsync");
}

void rename_durably(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fault_errno(from, fmt::format("cannot be renamed to {}", to));
  const auto parent = std::filesystem::path(to).parent_path();
  const std::string folder = parent.empty() ? std::string(".") : parent.string();
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fault_errno(folder, "cannot be opened");
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  if (result != 0 && code != EINVAL) fault(folder, "fsync: {}", std::strerror(code));
}

std::string read_text(const std::string& path) {
  const auto file = File::open_for_reading(path);
  std::string text(file.size(), '\0');
  file.read(text.data(), text.size(), 0);
  return text;
}

void write_text(const std::string& path, const std::string& text) {
  const std::string partial = fmt::format("{}.partial", path);
  try {
    auto file = File::create(partial);
    file.write(text.data(), text.size(), 0);
    file.sync();
    rename_durably(partial, path);
  } catch (const FaultError&) {
    ::unlink(partial.c_str());
    throw;
  }
}

}  // namespace sherd
