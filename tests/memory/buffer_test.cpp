#include "sherd/memory/buffer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <optional>

#include "sherd/base/error.h"
#include "tests/models/devices.h"

namespace sherd {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kBytes = sizeof(float);

uintptr_t address_of(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()); }

int64_t mapped_pages() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages;
}

TEST(Allocate, IsZeroFilledAndExactlyAsLargeAsAsked) {
  for (const at::Device device : test_devices())
    for (const int64_t elements : {0, 1, 1023, 1024, 1025, 524'287, 524'288, 600'001}) {
      const at::Tensor tensor = allocate(elements, device);
      EXPECT_EQ(tensor.numel(), elements);
      EXPECT_EQ(tensor.dim(), 1);
      EXPECT_EQ(tensor.scalar_type(), at::kFloat);
      EXPECT_EQ(tensor.device().type(), device.type());
      const at::Tensor host = tensor.cpu();
      for (int64_t i = 0; i < elements; ++i) ASSERT_EQ(host.const_data_ptr<float>()[i], 0.0F);
    }
}

TEST(Allocate, SmallOnesStartOnAPageAndLargeOnesOnAHugePage) {
  for (const int64_t elements : {1, 1000, 524'287}) EXPECT_EQ(address_of(allocate(elements, at::kCPU)) % 4096, 0);
  for (const int64_t elements : {524'288, 524'289, 3'000'001}) {
    const at::Tensor tensor = allocate(elements, at::kCPU);
    EXPECT_EQ(address_of(tensor) % kHugePage, 0);
    tensor.data_ptr<float>()[elements - 1] = 1;  // The last element is still inside of the mapping.
  }
}

TEST(Allocate, ReturnsItsMemory) {
  const int64_t before = mapped_pages();
  for (int i = 0; i < 20; ++i) allocate(i % 2 == 0 ? 20'000'000 : 1000, at::kCPU);
  EXPECT_LT(mapped_pages() - before, 20'000'000 * kBytes / 4096) << "20 buffers of 76 MiB would be far more";
}

TEST(Allocate, MoreThanThereIsIsAFault) {
  try {
    allocate(int64_t{1} << 58, at::kCPU);
    FAIL() << "2^60 bytes were mapped";
  } catch (const FaultError& error) {
    EXPECT_STREQ(error.what(), "[memory] cannot map 1048576.0 TiB; try a smaller model, micro-batch or more ranks");
  }
}

TEST(MakeBuffer, IsBookedAsLongAsItLives) {
  for (const at::Device device : test_devices()) {
    Ledger ledger;
    {
      const Buffer buffer = make_buffer(ledger, MemoryKind::moments, "blocks.3", 1001, device);
      EXPECT_EQ(buffer.tensor.numel(), 1001);
      EXPECT_EQ(ledger.by_unit(MemoryKind::moments), (std::map<std::string, int64_t>{{"blocks.3", 1001 * kBytes}}));
    }
    EXPECT_EQ(ledger.total(), 0);
  }
}

TEST(BufferPool, NothingIsAllocatedOnceItIsWarm) {
  for (const at::Device device : test_devices()) {
    Ledger ledger;
    BufferPool pool(ledger, MemoryKind::unsharded, device);
    const auto step = [&] {
      auto first = pool.lend(1000), second = pool.lend(1000), large = pool.lend(5000);
      EXPECT_EQ(first.tensor().numel(), 1000);
      EXPECT_NE(address_of(first.tensor()), address_of(second.tensor()));
      first.give_back();
      const auto third = pool.lend(700);
      EXPECT_EQ(third.tensor().numel(), 700);
      EXPECT_EQ(large.tensor().numel(), 5000);
    };
    step();
    EXPECT_EQ(pool.allocations(), 3);
    const int64_t held = ledger.total();
    EXPECT_EQ(held, 7000 * kBytes) << "what came back stays booked";
    for (int i = 0; i < 10; ++i) step();
    EXPECT_EQ(pool.allocations(), 3);
    EXPECT_EQ(ledger.total(), held);
    EXPECT_EQ(ledger.peak(MemoryKind::unsharded), held);
  }
}

TEST(BufferPool, TheSmallestThatFitsIsLentAndNoneThatIsTwiceTooLarge) {
  Ledger ledger;
  BufferPool pool(ledger, MemoryKind::communication, at::kCPU);
  uintptr_t small = 0, large = 0;
  {
    const auto a = pool.lend(3000), b = pool.lend(2000);
    large = address_of(a.tensor());
    small = address_of(b.tensor());
  }
  EXPECT_EQ(address_of(pool.lend(1800).tensor()), small);
  EXPECT_EQ(address_of(pool.lend(2001).tensor()), large);
  EXPECT_EQ(address_of(pool.lend(1000).tensor()), small) << "just twice";
  EXPECT_EQ(pool.allocations(), 2);
  const auto little = pool.lend(999);
  EXPECT_EQ(pool.allocations(), 3);
  EXPECT_EQ(little.tensor().numel(), 999);
}

TEST(BufferPool, ALoanGivesBackOnceAndByMoving) {
  Ledger ledger;
  BufferPool pool(ledger, MemoryKind::communication, at::kCPU);
  EXPECT_FALSE(BufferPool::Loan());
  auto loan = pool.lend(10);
  EXPECT_TRUE(loan);
  BufferPool::Loan moved(std::move(loan));
  EXPECT_TRUE(moved);
  loan = pool.lend(10);
  EXPECT_EQ(pool.allocations(), 2);
  loan = std::move(moved);  // What `loan` had is on the shelf again.
  EXPECT_FALSE(moved);      // NOLINT(bugprone-use-after-move): this is what is tested
  const auto again = pool.lend(10);
  EXPECT_EQ(pool.allocations(), 2);
  loan.give_back();
  loan.give_back();
  EXPECT_FALSE(loan);
  const auto a = pool.lend(10), b = pool.lend(10);
  EXPECT_EQ(pool.allocations(), 3) << "given back once, lent once";
}

TEST(BufferPool, ALoanMayOutliveItsPool) {
  Ledger ledger;
  std::optional<BufferPool> pool(std::in_place, ledger, MemoryKind::unsharded, at::kCPU);
  auto loan = pool->lend(100);
  { const auto returned = pool->lend(100); }
  pool.reset();
  EXPECT_EQ(ledger.total(), 100 * kBytes) << "the shelf is gone, the loan is not";
  loan.tensor().data_ptr<float>()[99] = 1;
  loan.give_back();
  EXPECT_EQ(ledger.total(), 0);
}

}  // namespace
}  // namespace sherd
