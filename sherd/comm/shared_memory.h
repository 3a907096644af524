// A memfd segment that the ranks of one host map: read-only as a whole, and writable by ranges for their owners.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "sherd/base/unique_fd.h"

namespace sherd {

/// One mapping of (a part of) a segment; unmapped at the end. data() is where the asked-for offset lies.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept { *this = static_cast<Mapping&&>(other); }
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  friend class SharedMemory;
  Mapping(void* base, int64_t bytes);
  void* base_ = nullptr;
  int64_t mapped_ = 0;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// What the system does for a new segment; tests replace parts of it.
class SegmentSystem {
 public:
  virtual ~SegmentSystem() = default;
  virtual int make(unsigned flags) const;            // memfd_create
  virtual int seal(int fd) const;                    // against resizing
  virtual int reserve(int fd, int64_t bytes) const;  // fallocate
  virtual std::optional<int64_t> available() const;  // bytes that could still be allocated
};

/// The segment. It has no name: it is gone when its last process closes it, whatever happened.
class SharedMemory {
 public:
  /// A new zero-filled segment, sealed against resizing where the system can. All its memory is taken here, so that no
  /// later write ends the process for want of it. Throws FaultError, with what is wanted and what there is.
  static SharedMemory create(int64_t bytes, const SegmentSystem& system = SegmentSystem());
  /// A segment from a received descriptor. Throws FaultError when it is smaller than `bytes`.
  static SharedMemory adopt(UniqueFd fd, int64_t bytes);

  /// Everything, read-only: a stray write faults.
  Mapping map_read_only() const;
  /// The same, where a page may be made writable for this process alone (copy on write: memory/write_guard.h).
  Mapping map_private() const;
  /// Puts the shared pages back into a mapping from map_private(), at its address.
  void restore(const Mapping& mapping) const;
  /// [offset, offset + bytes) for writing, rounded out to pages.
  Mapping map_writable(int64_t offset, int64_t bytes) const;

  int fd() const { return fd_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  void* map(void* address, int flags) const;

  UniqueFd fd_;
  int64_t bytes_ = 0;
};

/// Descriptors over a connected UNIX socket, each with one 8-byte number. Throw FaultError; receive_fd waits as long as
/// the socket's own time-out (SO_RCVTIMEO) says.
void send_fd(int socket, int fd, int64_t number);
UniqueFd receive_fd(int socket, int64_t& number);
/// Closes the descriptors that have arrived and were not received.
void drop_descriptors(int socket) noexcept;

}  // namespace sherd
