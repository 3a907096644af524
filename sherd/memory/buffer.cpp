#include "sherd/memory/buffer.h"

#include <c10/core/InferenceMode.h>
#include <sys/mman.h>

#include "sherd/base/bytes.h"
#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

at::Tensor map_cpu(int64_t elements, at::ScalarType type) {
  const int64_t bytes = std::max<int64_t>(bytes_of(elements, type), 1);
  const int64_t slack = bytes >= kHugePage ? kHugePage : 0;
  const int64_t mapped = round_up(bytes + slack, 4096);
  void* base = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    fault("memory", "cannot map {}; try a smaller model, micro-batch or more ranks", format_bytes(mapped));
  auto address = reinterpret_cast<uintptr_t>(base);
  if (slack > 0) {
    address = static_cast<uintptr_t>(round_up(static_cast<int64_t>(address), kHugePage));
    madvise(reinterpret_cast<void*>(address), static_cast<size_t>(bytes), MADV_HUGEPAGE);
  }
  return at::from_blob(
      reinterpret_cast<void*>(address), {elements},
      [base, mapped](void*) { munmap(base, static_cast<size_t>(mapped)); }, at::TensorOptions().dtype(type));
}

}  // namespace

// What is taken in the first forward is written to later, whatever mode that one was in.
at::Tensor allocate(int64_t elements, at::Device device, at::ScalarType type) {
  const c10::InferenceMode normal(false);
  if (device.is_cpu()) return map_cpu(elements, type);
  return at::zeros({elements}, at::TensorOptions().dtype(type).device(device));
}

Buffer make_buffer(Ledger& ledger, MemoryKind kind, const std::string& unit, int64_t elements, at::Device device,
                   at::ScalarType type) {
  return {allocate(elements, device, type), ledger.book(kind, unit, bytes_of(elements, type))};
}

at::Tensor part_of(const std::shared_ptr<Buffer>& buffer, int64_t offset, int64_t elements, at::ScalarType type) {
  const at::Tensor& bytes = buffer->tensor;
  SHERD_CHECK(bytes.scalar_type() == at::kByte && offset + bytes_of(elements, type) <= bytes.numel());
  const c10::InferenceMode normal(false);
  return at::from_blob(
      static_cast<std::byte*>(bytes.mutable_data_ptr()) + offset, {elements}, [buffer](void*) {},
      at::TensorOptions().dtype(type).device(bytes.device()));
}

BufferPool::Loan& BufferPool::Loan::operator=(Loan&& other) noexcept {
  give_back();
  shelf_ = std::move(other.shelf_);
  buffer_ = std::move(other.buffer_);
  view_ = std::move(other.view_);
  return *this;
}

void BufferPool::Loan::give_back() {
  if (!view_.defined()) return;
  view_.reset();
  if (const auto shelf = shelf_.lock()) shelf->push_back(std::move(buffer_));
  buffer_ = {};
}

BufferPool::Loan BufferPool::lend(int64_t elements, at::ScalarType type) {
  const c10::InferenceMode normal(false);
  const int64_t asked = elements;
  elements = ceil_div(bytes_of(asked, type), static_cast<int64_t>(sizeof(float)));  // kept buffers are fp32
  Loan loan;
  loan.shelf_ = shelf_;
  // The smallest kept buffer that is large enough, but not one more than twice too large.
  auto best = shelf_->end();
  for (auto it = shelf_->begin(); it != shelf_->end(); ++it) {
    const int64_t size = it->tensor.numel();
    if (size >= elements && size <= 2 * elements && (best == shelf_->end() || size < best->tensor.numel())) best = it;
  }
  if (best != shelf_->end()) {
    loan.buffer_ = std::move(*best);
    shelf_->erase(best);
  } else {
    loan.buffer_ = make_buffer(ledger_, kind_, "", elements, device_);
    ++allocations_;
  }
  loan.view_ = loan.buffer_.tensor.narrow(0, 0, elements).view(type).narrow(0, 0, asked);
  return loan;
}

}  // namespace sherd
