#include "sherd/comm/thread_group.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>

#include "sherd/base/error.h"

namespace sherd {

// Collective number k of rank r is the k-th entry of r's list: a pointer to what r offers, and how many peers have
// taken it. Nothing is copied before all have offered; an offer may be reused once all have taken it.
struct ThreadGroup::Shared {
  explicit Shared(int ranks, std::chrono::milliseconds time)
      : size(ranks), timeout(time), offers(static_cast<size_t>(ranks)) {}

  struct Offer {
    const void* data = nullptr;
    int taken = 0;
  };

  const int size;
  const std::chrono::milliseconds timeout;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::map<uint64_t, Offer>> offers;
  std::optional<std::string> aborted;

  // False when the time is over.
  template <class Condition>
  bool wait(std::unique_lock<std::mutex>& lock, Condition condition) {
    const bool came = changed.wait_for(lock, timeout, [&] { return aborted || condition(); });
    if (aborted) throw FaultError(*aborted);
    return came;
  }

  void offer(int rank, uint64_t number, const void* data) {
    const std::lock_guard lock(mutex);
    offers[static_cast<size_t>(rank)][number] = {data, 0};
    changed.notify_all();
  }

  const void* take(int rank, uint64_t number, const char* what) {
    std::unique_lock lock(mutex);
    auto& list = offers[static_cast<size_t>(rank)];
    if (!wait(lock, [&] { return list.contains(number); }))
      fault("threads", "waited {} ms for rank {}: {}", timeout.count(), rank, what);
    return list[number].data;
  }

  void taken(int rank, uint64_t number) {
    const std::lock_guard lock(mutex);
    ++offers[static_cast<size_t>(rank)][number].taken;
    changed.notify_all();
  }

  void withdraw(int rank, uint64_t number, const char* what) {
    std::unique_lock lock(mutex);
    auto& list = offers[static_cast<size_t>(rank)];
    if (!wait(lock, [&] { return list[number].taken == size; }))
      fault("threads", "rank {} waited {} ms until all had taken its part: {}", rank, timeout.count(), what);
    list.erase(number);
  }
};

class ThreadGroup::ThreadTransport : public Transport {
 public:
  ThreadTransport(std::shared_ptr<Shared> shared, int rank)
      : Transport(rank, shared->size), shared_(std::move(shared)) {}

  std::string_view name() const override { return "threads"; }

  std::vector<double> exchange(std::span<const double> values) override {
    std::vector<double> result(values.size() * static_cast<size_t>(size()));
    collect(values.data(), "an exchange", [&](int r, const void* data) {
      std::copy_n(static_cast<const double*>(data), values.size(),
                  result.begin() + r * static_cast<int64_t>(values.size()));
    })();
    return result;
  }

  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole) override {
    const int64_t count = shard.numel();
    bytes_sent_ += static_cast<int64_t>(shard.nbytes()) * (size() - 1);
    return exchange_tensor(shard, "an all-gather", [whole, count](int r, const at::Tensor& theirs) {
      whole.narrow(0, r * count, count).copy_(theirs);
    });
  }

  Pending all_to_all(const at::Tensor& send, const at::Tensor& received) override {
    const int64_t piece = send.numel() / size();
    bytes_sent_ += static_cast<int64_t>(send.nbytes()) / size() * (size() - 1);
    return exchange_tensor(send, "an all-to-all", [received, piece, me = rank()](int r, const at::Tensor& theirs) {
      received.narrow(0, r * piece, piece).copy_(theirs.narrow(0, me * piece, piece));
    });
  }

  void abort(std::string_view cause) noexcept override {
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->aborted) shared_->aborted = fmt::format("[threads] rank {} gave up: {}", rank(), cause);
    shared_->changed.notify_all();
  }

 private:
  Pending exchange_tensor(const at::Tensor& mine, const char* what, std::function<void(int, const at::Tensor&)> take) {
    // The tensor object outlives the offer: the last call withdraws it.
    const auto held = std::make_shared<at::Tensor>(mine);
    return Pending([held, finish = collect(held.get(), what, [take](int r, const void* theirs) {
                            take(r, *static_cast<const at::Tensor*>(theirs));
                          })] { finish(); });
  }

  // Offers `data` now; the returned function takes every rank's offer of the same number and waits until all took ours.
  std::function<void()> collect(const void* data, const char* what, std::function<void(int, const void*)> take) {
    const uint64_t number = next_++;
    shared_->offer(rank(), number, data);
    return [this, number, what, take = std::move(take)] {
      for (int r = 0; r < size(); ++r) {
        take(r, shared_->take(r, number, what));
        shared_->taken(r, number);
      }
      shared_->withdraw(rank(), number, what);
    };
  }

  std::shared_ptr<Shared> shared_;
  uint64_t next_ = 0;
};

ThreadGroup::ThreadGroup(int size, std::chrono::milliseconds timeout)
    : shared_(std::make_shared<Shared>(size, timeout)) {}
ThreadGroup::~ThreadGroup() = default;
std::unique_ptr<Transport> ThreadGroup::transport(int rank) { return std::make_unique<ThreadTransport>(shared_, rank); }

}  // namespace sherd
