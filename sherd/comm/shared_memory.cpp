#include "sherd/comm/shared_memory.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/comm/available_memory.h"

namespace sherd {
namespace {

constexpr const char* kSharedMemory = "shared memory";
constexpr int64_t kPage = 4096;

}  // namespace

Mapping::Mapping(void* base, int64_t bytes)
    : base_(base), mapped_(bytes), data_(static_cast<std::byte*>(base)), bytes_(bytes) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(mapped_));
}

int SegmentSystem::make(unsigned flags) const { return memfd_create("sherd", flags); }
int SegmentSystem::seal(int fd) const { return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); }
std::optional<int64_t> SegmentSystem::available() const { return available_memory(); }
int SegmentSystem::reserve(int fd, int64_t bytes) const {
  // A signal may come before it is done; what is there by then stays.
  int result = fallocate(fd, 0, 0, bytes);
  while (result != 0 && errno == EINTR) result = fallocate(fd, 0, 0, bytes);
  return result;
}

SharedMemory SharedMemory::create(int64_t bytes, const SegmentSystem& system) {
  SharedMemory memory;
  memory.bytes_ = round_up(std::max<int64_t>(bytes, 1), kPage);
  // Reserving more than there is would not fail: the kernel would look for a process to end.
  const std::optional<int64_t> available = system.available();
  const std::string there_is = available ? format_bytes(*available) + " available" : "an unknown amount available";
  if (available && memory.bytes_ > *available)
    fault(kSharedMemory, "cannot make a segment of {}: {}; try fewer parameters a host, or more hosts",
          format_bytes(memory.bytes_), there_is);
  memory.fd_ = UniqueFd(system.make(MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.fd_ && errno == EINVAL) memory.fd_ = UniqueFd(system.make(MFD_CLOEXEC));
  if (!memory.fd_) fault_errno(kSharedMemory, "memfd_create failed");
  const bool resized = ftruncate(memory.fd(), memory.bytes_) == 0;
  if (!resized || (system.reserve(memory.fd(), memory.bytes_) != 0 && errno != EOPNOTSUPP && errno != ENOSYS))
    fault_errno(kSharedMemory, fmt::format("cannot make a segment of {}: {}", format_bytes(memory.bytes_), there_is));
  // A peer that shrinks the segment would end us with SIGBUS. Where sealing is not allowed, we trust the peers.
  system.seal(memory.fd());
  return memory;
}

SharedMemory SharedMemory::adopt(UniqueFd fd, int64_t bytes) {
  SharedMemory memory;
  memory.fd_ = std::move(fd);
  memory.bytes_ = round_up(std::max<int64_t>(bytes, 1), kPage);
  struct stat status = {};
  if (fstat(memory.fd(), &status) != 0) fault_errno(kSharedMemory, "cannot ask a received segment for its size");
  if (status.st_size < memory.bytes_)
    fault(kSharedMemory, "got a segment of {}, expected {}", format_bytes(status.st_size), format_bytes(memory.bytes_));
  return memory;
}

Mapping SharedMemory::map_read_only() const { return {map(nullptr, MAP_SHARED), bytes_}; }

Mapping SharedMemory::map_private() const { return {map(nullptr, MAP_PRIVATE), bytes_}; }

void SharedMemory::restore(const Mapping& mapping) const { map(mapping.base_, MAP_PRIVATE | MAP_FIXED); }

void* SharedMemory::map(void* address, int flags) const {
  void* base = mmap(address, static_cast<size_t>(bytes_), PROT_READ, flags, fd(), 0);
  if (base == MAP_FAILED) fault_errno(kSharedMemory, fmt::format("cannot map {}", format_bytes(bytes_)));
  return base;
}

Mapping SharedMemory::map_writable(int64_t offset, int64_t bytes) const {
  Mapping mapping;
  if (bytes == 0) return mapping;
  const int64_t first = offset / kPage * kPage;
  mapping.mapped_ = round_up(offset + bytes, kPage) - first;
  void* base = mmap(nullptr, static_cast<size_t>(mapping.mapped_), PROT_READ | PROT_WRITE, MAP_SHARED, fd(), first);
  if (base == MAP_FAILED)
    fault_errno(kSharedMemory, fmt::format("cannot map {} for writing", format_bytes(mapping.mapped_)));
  mapping.base_ = base;
  mapping.data_ = static_cast<std::byte*>(base) + (offset - first);
  mapping.bytes_ = bytes;
  return mapping;
}

void send_fd(int socket, int fd, int64_t number) {
  iovec payload = {&number, sizeof(number)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  ssize_t sent = 0;
  do sent = sendmsg(socket, &message, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(sizeof(number))) fault_errno(kSharedMemory, "cannot send a descriptor to a peer");
}

UniqueFd receive_fd(int socket, int64_t& number) {
  iovec payload = {&number, sizeof(number)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t received = 0;
  do received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
  while (received < 0 && errno == EINTR);
  if (received == 0) fault(kSharedMemory, "a peer ended before it sent its descriptor");
  if (received != static_cast<ssize_t>(sizeof(number)))
    fault_errno(kSharedMemory, "cannot receive a descriptor from a peer");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS)
    fault(kSharedMemory,
          "got a message without a descriptor, expected one; try a higher limit of open files (ulimit -n)");
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof(int));
  return UniqueFd(fd);
}

void drop_descriptors(int socket) noexcept {
  pollfd polled = {socket, POLLIN, 0};
  int64_t number = 0;
  try {
    while (poll(&polled, 1, 0) == 1) receive_fd(socket, number);
  } catch (const FaultError&) {  // The peer has closed it.
  }
}

}  // namespace sherd
