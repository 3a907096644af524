#include "sherd/data/file_bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "sherd/base/error.h"

namespace sherd {

FileBytes::FileBytes(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    const std::string reason = std::strerror(errno);
    config_error("data", "got {} ({}), expected a readable file; try its absolute path", path, reason);
  }
  struct stat status;
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    config_error("data", "got {}, expected a regular file; try a file instead of a folder or device", path);
  }
  size_ = status.st_size;
}

FileBytes::~FileBytes() { ::close(descriptor_); }

void FileBytes::read(int64_t first, int64_t count, void* out) const {
  SHERD_CHECK(first >= 0 && count >= 0 && first <= size_ - count);
  char* to = static_cast<char*>(out);
  while (count > 0) {
    const ssize_t got = ::pread(descriptor_, to, count, first);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fault_errno("data", fmt::format("cannot read {} at byte {}", path_, first));
    if (got == 0) {
      fault("data", "got the end of {} at byte {}, expected {} bytes; try not to change data while a run reads it",
            path_, first, size_);
    }
    to += got;
    first += got;
    count -= got;
  }
}

}  // namespace sherd
