#include "sherd/comm/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#include "sherd/base/error.h"
#include "tests/support/process_maps.h"
#include "tests/support/processes.h"

namespace sherd {
namespace {

using testing::mappings_of;
using testing::open_descriptors;

constexpr int64_t kPage = 4096;

std::string fault_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const FaultError& error) {
    return error.what();
  }
  return "no fault";
}

std::array<UniqueFd, 2> connected() {
  int fds[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

TEST(SharedMemory, IsZeroFilledAndRoundedUpToPages) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, kPage - 1, kPage, kPage + 1, 10 * kPage + 3}) {
    const SharedMemory memory = SharedMemory::create(bytes);
    EXPECT_EQ(memory.bytes(), std::max<int64_t>((bytes + kPage - 1) / kPage, 1) * kPage);
    const Mapping mapping = memory.map_read_only();
    ASSERT_EQ(mapping.bytes(), memory.bytes());
    for (int64_t i = 0; i < mapping.bytes(); ++i) ASSERT_EQ(mapping.data()[i], std::byte{0});
  }
}

TEST(SharedMemory, AWriteIsVisibleInTheReadOnlyMapping) {
  const SharedMemory memory = SharedMemory::create(3 * kPage);
  const Mapping all = memory.map_read_only();
  const Mapping mine = memory.map_writable(kPage + 100, 300);
  for (int64_t i = 0; i < mine.bytes(); ++i) mine.data()[i] = std::byte(i);
  for (int64_t i = 0; i < mine.bytes(); ++i) ASSERT_EQ(all.data()[kPage + 100 + i], std::byte(i));
  EXPECT_EQ(all.data()[kPage + 99], std::byte{0});
  EXPECT_EQ(all.data()[kPage + 400], std::byte{0});
}

TEST(SharedMemory, AWritableMappingCoversThePagesOfItsRangeOnly) {
  const SharedMemory memory = SharedMemory::create(8 * kPage);
  struct Case {
    int64_t offset, bytes, pages;
  };
  for (const auto& [offset, bytes, pages] :
       {Case{0, 1, 1}, Case{0, kPage, 1}, Case{kPage - 1, 2, 2}, Case{100, kPage, 2}, Case{2 * kPage, 3 * kPage, 3},
        Case{7 * kPage + 1, kPage - 1, 1}}) {
    const Mapping mapping = memory.map_writable(offset, bytes);
    EXPECT_EQ(mapping.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(mapping.data()) % kPage, static_cast<uintptr_t>(offset % kPage));
    const auto maps = mappings_of("memfd:sherd");
    ASSERT_EQ(maps.size(), 1);
    EXPECT_EQ(maps[0].permissions, "rw-s");
    EXPECT_EQ(static_cast<int64_t>(maps[0].end - maps[0].begin), pages * kPage);
    EXPECT_EQ(static_cast<int64_t>(maps[0].offset), offset / kPage * kPage);
  }
}

TEST(SharedMemory, NoBytesNeedNoMapping) {
  const SharedMemory memory = SharedMemory::create(kPage);
  const Mapping none = memory.map_writable(17, 0);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_TRUE(mappings_of("memfd:sherd").empty());
}

TEST(SharedMemoryDeathTest, AWriteToTheReadOnlyMappingFaults) {
  const SharedMemory memory = SharedMemory::create(kPage);
  const Mapping all = memory.map_read_only();
  // A sanitizer reports the fault itself and exits; without one the signal ends the process.
  const auto died = [](int status) {
    return (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) || (WIFEXITED(status) && WEXITSTATUS(status) != 0);
  };
  EXPECT_EXIT(*reinterpret_cast<volatile char*>(all.data()) = 1, died, "");
  EXPECT_EQ(all.data()[0], std::byte{0});
}

TEST(SharedMemory, TheSizeIsSealed) {
  const SharedMemory memory = SharedMemory::create(4 * kPage);
  EXPECT_EQ(ftruncate(memory.fd(), kPage), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(memory.fd(), 8 * kPage), -1);
  EXPECT_EQ(fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_WRITE), -1) << "more seals would take the owners' writes away";
  EXPECT_TRUE(fcntl(memory.fd(), F_GETFD) & FD_CLOEXEC);
}

TEST(SharedMemory, ASegmentBeyondALimitIsAFault) {
  const auto statuses = testing::run_processes(1, [](const World&) {
    const rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    std::signal(SIGXFSZ, SIG_IGN);
    const std::string text = fault_of([] { SharedMemory::create(2 << 20); });
    EXPECT_TRUE(text.starts_with("[shared memory] cannot make a segment of 2.00 MiB: ")) << text;
    EXPECT_TRUE(text.ends_with(" available: File too large")) << text;
  });
  EXPECT_EQ(statuses[0], 0);
}

TEST(SharedMemory, AMappingBeyondTheAddressSpaceIsAFault) {
  struct Unreserved : SegmentSystem {
    int reserve(int, int64_t) const override { return 0; }
    std::optional<int64_t> available() const override { return std::nullopt; }
  };
  const SharedMemory memory = SharedMemory::create(int64_t{1} << 60, Unreserved());
  EXPECT_EQ(fault_of([&] { memory.map_read_only(); }),
            "[shared memory] cannot map 1048576.0 TiB: Cannot allocate memory");
  EXPECT_EQ(fault_of([&] { memory.map_writable(0, int64_t{1} << 59); }),
            "[shared memory] cannot map 524288.0 TiB for writing: Cannot allocate memory");
}

TEST(SharedMemory, AdoptTakesTheDescriptorAndChecksTheSize) {
  const SharedMemory memory = SharedMemory::create(2 * kPage);
  const SharedMemory same = SharedMemory::adopt(UniqueFd(dup(memory.fd())), 2 * kPage);
  memory.map_writable(5, 1).data()[0] = std::byte{7};
  EXPECT_EQ(same.map_read_only().data()[5], std::byte{7});

  const auto before = open_descriptors();
  EXPECT_EQ(fault_of([&] { SharedMemory::adopt(UniqueFd(dup(memory.fd())), 2 * kPage + 1); }),
            "[shared memory] got a segment of 8.00 KiB, expected 12.0 KiB");
  EXPECT_NE(fault_of([] { SharedMemory::adopt(UniqueFd(), kPage); }).find("Bad file descriptor"), std::string::npos);
  EXPECT_EQ(open_descriptors(), before);
}

TEST(SharedMemory, MovedMappingsAreUnmappedOnce) {
  const SharedMemory memory = SharedMemory::create(kPage);
  Mapping first = memory.map_read_only();
  const auto* data = first.data();
  Mapping second(std::move(first));
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(mappings_of("memfd:sherd").size(), 1);
  second = memory.map_writable(0, 10);
  EXPECT_EQ(mappings_of("memfd:sherd").size(), 1);
  second = Mapping();
  EXPECT_TRUE(mappings_of("memfd:sherd").empty());
}

TEST(SharedMemory, DescriptorsTravelWithTheirNumber) {
  const auto sockets = connected();
  const SharedMemory sent = SharedMemory::create(3 * kPage);
  send_fd(sockets[0].get(), sent.fd(), 3 * kPage);
  int64_t number = 0;
  UniqueFd fd = receive_fd(sockets[1].get(), number);
  EXPECT_EQ(number, 3 * kPage);
  EXPECT_TRUE(fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
  struct stat a = {}, b = {};
  ASSERT_EQ(fstat(sent.fd(), &a), 0);
  ASSERT_EQ(fstat(fd.get(), &b), 0);
  EXPECT_EQ(a.st_ino, b.st_ino);
}

TEST(SharedMemory, WhatIsNotADescriptorIsAFault) {
  int64_t number = 0;
  auto sockets = connected();
  ASSERT_EQ(write(sockets[0].get(), &number, sizeof(number)), 8);
  EXPECT_NE(fault_of([&] { receive_fd(sockets[1].get(), number); }).find("got a message without a descriptor"),
            std::string::npos);

  const timeval short_time = {.tv_sec = 0, .tv_usec = 50'000};
  ASSERT_EQ(setsockopt(sockets[1].get(), SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof(short_time)), 0);
  EXPECT_EQ(fault_of([&] { receive_fd(sockets[1].get(), number); }).find("[shared memory] cannot receive a descriptor"),
            0);

  sockets[0] = UniqueFd();
  EXPECT_EQ(fault_of([&] { receive_fd(sockets[1].get(), number); }),
            "[shared memory] a peer ended before it sent its descriptor");
  EXPECT_EQ(fault_of([&] { send_fd(sockets[1].get(), 0, 0); }).find("[shared memory] cannot send a descriptor"), 0);
}

TEST(SharedMemory, AllOfItIsTakenAtOnce) {
  const SharedMemory memory = SharedMemory::create(100 * kPage);
  struct stat status = {};
  ASSERT_EQ(fstat(memory.fd(), &status), 0);
  EXPECT_EQ(status.st_blocks * 512, 100 * kPage) << "a page that is taken at its first touch may not be there then";
}

TEST(SharedMemory, MoreThanThereIsIsAFaultThatSaysHowMuchThereIs) {
  const auto before = open_descriptors();
  struct Small : SegmentSystem {
    std::optional<int64_t> available() const override { return 20 * kPage; }
  };
  EXPECT_NO_THROW(SharedMemory::create(20 * kPage, Small()));
  EXPECT_EQ(
      fault_of([] { SharedMemory::create(20 * kPage + 1, Small()); }),
      "[shared memory] cannot make a segment of 84.0 KiB: 80.0 KiB available; try fewer parameters a host, or more "
      "hosts");
  // The machine itself: nothing has a PiB.
  const std::string text = fault_of([] { SharedMemory::create(int64_t{1} << 50); });
  EXPECT_TRUE(text.starts_with("[shared memory] cannot make a segment of 1024.0 TiB: ")) << text;
  EXPECT_NE(text.find(" available; try"), std::string::npos) << text;
  EXPECT_EQ(open_descriptors(), before);
}

TEST(SharedMemory, WhatTheSystemRefusesIsAFaultWithBothSizes) {
  struct Full : SegmentSystem {
    std::optional<int64_t> available() const override { return 40 * kPage; }
    int reserve(int, int64_t) const override {
      errno = ENOSPC;
      return -1;
    }
  };
  EXPECT_EQ(fault_of([] { SharedMemory::create(30 * kPage, Full()); }),
            "[shared memory] cannot make a segment of 120.0 KiB: 160.0 KiB available: No space left on device");
}

TEST(SharedMemory, WorksWhereTheSystemCannotSealOrReserve) {
  struct Old : SegmentSystem {
    int make(unsigned flags) const override {
      if ((flags & MFD_ALLOW_SEALING) == 0) return SegmentSystem::make(flags);
      errno = EINVAL;
      return -1;
    }
    int seal(int fd) const override { return SegmentSystem::seal(fd); }  // refused: made without sealing
    int reserve(int, int64_t) const override {
      errno = EOPNOTSUPP;
      return -1;
    }
    std::optional<int64_t> available() const override { return std::nullopt; }
  };
  const SharedMemory memory = SharedMemory::create(5 * kPage, Old());
  EXPECT_EQ(Old().seal(memory.fd()), -1);
  const Mapping all = memory.map_read_only(), mine = memory.map_writable(kPage, 10);
  mine.data()[3] = std::byte{9};
  EXPECT_EQ(all.data()[kPage + 3], std::byte{9});
}

}  // namespace
}  // namespace sherd
