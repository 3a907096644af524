// Buffers of the engine: aligned, booked, and kept.
//
// A Buffer is one 1-D tensor (fp32 unless said otherwise) on a device together with its booking. On a CPU it is a
// private mapping, aligned to 2 MiB where it is that large and advised for huge pages, zero-filled by the kernel on
// first touch. A BufferPool lends buffers and keeps those that come back: after the first step nothing is allocated.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "sherd/memory/ledger.h"

namespace sherd {

/// What so many elements of a type take.
inline int64_t bytes_of(int64_t elements, at::ScalarType type) {
  return elements * static_cast<int64_t>(c10::elementSize(type));
}

/// A zero-filled tensor of `elements` on `device`. Throws FaultError when memory is out.
at::Tensor allocate(int64_t elements, at::Device device, at::ScalarType type = at::kFloat);

struct Buffer {
  at::Tensor tensor;  // [elements], zero-filled when made
  Booking booking;
};

/// Makes a buffer of `elements` and books it.
Buffer make_buffer(Ledger& ledger, MemoryKind kind, const std::string& unit, int64_t elements, at::Device device,
                   at::ScalarType type = at::kFloat);

/// A tensor over `elements` of a buffer of bytes, from byte `offset` on (a multiple of the type's size), with a storage
/// of its own: whoever saves or copies it has nothing else of the buffer, which lives as long as any part of it.
at::Tensor part_of(const std::shared_ptr<Buffer>& buffer, int64_t offset, int64_t elements, at::ScalarType type);

/// Lends buffers by size. A returned buffer stays allocated (and booked under the pool's kind) for the next loan.
/// Not thread-safe: one pool a rank. Loans may outlive the pool.
class BufferPool {
 public:
  BufferPool(Ledger& ledger, MemoryKind kind, at::Device device) : ledger_(ledger), kind_(kind), device_(device) {}

  /// A loan: `tensor` has exactly the elements asked for and arbitrary contents.
  class Loan {
   public:
    Loan() = default;
    Loan(Loan&&) = default;
    Loan& operator=(Loan&& other) noexcept;
    ~Loan() { give_back(); }
    const at::Tensor& tensor() const { return view_; }
    explicit operator bool() const { return view_.defined(); }
    void give_back();

   private:
    friend class BufferPool;
    std::weak_ptr<std::vector<Buffer>> shelf_;
    Buffer buffer_;
    at::Tensor view_;
  };

  Loan lend(int64_t elements, at::ScalarType type = at::kFloat);
  /// How many buffers this pool has ever allocated: constant once the first step is over.
  int64_t allocations() const { return allocations_; }

 private:
  Ledger& ledger_;
  MemoryKind kind_;
  at::Device device_;
  std::shared_ptr<std::vector<Buffer>> shelf_ = std::make_shared<std::vector<Buffer>>();
  int64_t allocations_ = 0;
};

}  // namespace sherd
