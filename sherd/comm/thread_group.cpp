#include "sherd/comm/thread_group.h"

#include <fmt/ranges.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>

#include "sherd/base/error.h"
#include "sherd/comm/descriptor.h"

namespace sherd {

// Collective number k of rank r is the k-th entry of r's list: a pointer to what r offers, and how many peers have
// taken it. Nothing is copied before all have offered; an offer may be reused once all have taken it, or, after an
// abort, once nobody is copying from it. What an exchange offers is a copy that stays until all have taken it, so that
// an abort that follows the exchange on one rank cannot undo it on another.
struct ThreadGroup::Shared {
  explicit Shared(int ranks, std::chrono::milliseconds time) : size(ranks), timeout(time) {}

  struct Offer {
    const void* data = nullptr;
    Descriptor descriptor;
    std::shared_ptr<const void> kept = nullptr;  // owns `data` where it outlives the call
    int taken = 0, copying = 0;
  };
  /// The ranks of one transport, by their place in it.
  struct Circle {
    std::vector<std::map<uint64_t, Offer>> offers;
    int joined = 0;
  };
  using Lock = std::unique_lock<std::mutex>;

  const int size;
  const std::chrono::milliseconds timeout;
  std::mutex mutex;  // of everything below, and of all circles
  std::condition_variable changed;
  std::map<std::string, std::shared_ptr<Circle>> circles;  // that not all have joined yet
  std::vector<std::weak_ptr<Circle>> all_circles;
  std::optional<std::string> aborted, recovery_failed;
  uint64_t generation = 0;  // how many aborts are forgotten
  int recovering = 0;

  double seconds() const { return static_cast<double>(timeout.count()) / 1000; }

  std::shared_ptr<Circle> join(const std::string& name, size_t ranks) {
    const Lock lock(mutex);
    auto& entry = circles[name];
    if (!entry) {
      entry = std::make_shared<Circle>(Circle{std::vector<std::map<uint64_t, Offer>>(ranks)});
      all_circles.push_back(entry);
    }
    const auto circle = entry;
    if (++circle->joined == static_cast<int>(ranks)) circles.erase(name);
    return circle;
  }

  void check_generation(uint64_t started_in, const char* what) const {
    if (generation != started_in) fault("threads", "{} was broken off by an abort", what);
  }

  // False when the time is over.
  template <class Condition>
  bool wait(Lock& lock, uint64_t started_in, const char* what, Condition condition) {
    const bool came =
        changed.wait_for(lock, timeout, [&] { return generation != started_in || aborted || condition(); });
    check_generation(started_in, what);
    if (aborted && !condition()) throw FaultError(*aborted);
    return came;
  }

  void abort(const std::string& cause) {
    if (!aborted) aborted = cause;
    changed.notify_all();
  }

  void recover(int rank) {
    Lock lock(mutex);
    const uint64_t before = generation;
    if (!recovery_failed && ++recovering == size) {
      recovering = 0;
      for (const auto& weak : all_circles)
        if (const auto circle = weak.lock())
          for (auto& list : circle->offers) list.clear();
      std::erase_if(all_circles, [](const auto& weak) { return weak.expired(); });
      aborted.reset();
      ++generation;
      changed.notify_all();
      return;
    }
    if (!changed.wait_for(lock, timeout, [&] { return generation != before || recovery_failed; })) {
      recovery_failed =
          fmt::format("[threads] rank {} waited {} s for {} others to recover", rank, seconds(), size - recovering);
      abort(*recovery_failed);
    }
    if (generation == before) throw FaultError(*recovery_failed);
  }
};

class ThreadGroup::ThreadTransport : public Transport {
 public:
  using Shared = ThreadGroup::Shared;
  ThreadTransport(std::shared_ptr<Shared> shared, std::shared_ptr<Shared::Circle> circle, int rank, int rank_of_all,
                  Topology topology)
      : Transport(rank, std::move(topology)),
        shared_(std::move(shared)),
        circle_(std::move(circle)),
        rank_of_all_(rank_of_all) {}

  std::string_view name() const override { return "threads"; }

  std::optional<std::string> heard() override {
    const Shared::Lock lock(shared_->mutex);
    return shared_->aborted;
  }

  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) override {
    const int64_t count = shard.numel();
    bytes_sent_ += static_cast<int64_t>(shard.nbytes()) * (size() - 1);
    return exchange_tensor(
        shard, "an all-gather", {Descriptor::Kind::all_gather, count, what, shard.element_size()},
        [whole, count](int r, const at::Tensor& theirs) { whole.narrow(0, r * count, count).copy_(theirs); });
  }

  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) override {
    const int64_t piece = send.numel() / size();
    bytes_sent_ += static_cast<int64_t>(send.nbytes()) / size() * (size() - 1);
    return exchange_tensor(send, "an all-to-all",
                           {Descriptor::Kind::all_to_all, send.numel(), what, send.element_size()},
                           [received, piece, me = rank()](int r, const at::Tensor& theirs) {
                             received.narrow(0, r * piece, piece).copy_(theirs.narrow(0, me * piece, piece));
                           });
  }

 private:
  void run_exchange(const Part& mine, std::span<std::byte> all) override {
    const auto bytes = mine.bytes();
    const auto kept = std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
    collect({.data = kept->data(),
             .descriptor = {Descriptor::Kind::exchange, mine.elements, purpose(), mine.element_bytes},
             .kept = kept},
            "an exchange", [&](int r, const void* data) {
              std::copy_n(static_cast<const std::byte*>(data), bytes.size(),
                          all.begin() + r * static_cast<int64_t>(bytes.size()));
            })();
  }

  std::shared_ptr<Transport> make_subgroup(const std::vector<int>& ranks, int place) override {
    // The first rank says how often these ranks have been asked for: the others ask as often.
    const std::string list = fmt::format("{}", fmt::join(ranks, ","));
    const std::string name = fmt::format("{} {} {}", static_cast<const void*>(circle_.get()), list, ++subgroups_[list]);
    return std::make_shared<ThreadTransport>(shared_, shared_->join(name, ranks.size()), place, rank_of_all_,
                                             topology().among(ranks));
  }

  void tell_abort(std::string_view cause) noexcept override {
    const Shared::Lock lock(shared_->mutex);
    shared_->abort(fmt::format("[threads] rank {} gave up: {}", rank_of_all_, cause));
  }
  void run_recovery() override { shared_->recover(rank_of_all_); }

  using Take = std::function<void(int, const void*)>;

  Pending exchange_tensor(const at::Tensor& mine, const char* what, const Descriptor& descriptor,
                          std::function<void(int, const at::Tensor&)> take) {
    // The tensor object outlives the offer: the last call withdraws it.
    const auto held = std::make_shared<at::Tensor>(mine);
    return Pending([held, finish = collect({.data = held.get(), .descriptor = descriptor}, what,
                                           [take](int r, const void* theirs) {
                                             take(r, *static_cast<const at::Tensor*>(theirs));
                                           })] { finish(); });
  }

  /// One collective of this rank: its number since the last recovery, and which recovery that was.
  struct Turn {
    uint64_t generation, number;
    const char* what;
  };

  // Offers now; the returned function takes every rank's offer of the same number and waits until all took ours.
  std::function<void()> collect(const Shared::Offer& offer, const char* what, Take take) {
    const Shared::Lock lock(shared_->mutex);
    if (shared_->aborted) {
      heard_abort();
      throw FaultError(*shared_->aborted);
    }
    if (generation_ != shared_->generation) next_ = 0;
    generation_ = shared_->generation;
    const Turn turn{generation_, next_++, what};
    mine()[turn.number] = offer;
    shared_->changed.notify_all();
    return [this, turn, take = std::move(take)] { finish(turn, take); };
  }

  void finish(const Turn& turn, const Take& take) {
    Shared::Lock lock(shared_->mutex);
    shared_->check_generation(turn.generation, turn.what);  // else what follows would make an empty offer
    const bool kept = mine()[turn.number].kept != nullptr;
    const Descriptor descriptor = mine()[turn.number].descriptor;
    try {
      for (int r = 0; r < size(); ++r) {
        auto& theirs = circle_->offers[static_cast<size_t>(r)];
        if (!shared_->wait(lock, turn.generation, turn.what, [&] { return theirs.contains(turn.number); }))
          fault("threads", "waited {} s for rank {}: {}", shared_->seconds(), r, turn.what);
        compare(descriptor, r, theirs[turn.number].descriptor);
        copy(lock, theirs[turn.number], [&](const void* data) { take(r, data); });
        if (theirs[turn.number].kept && theirs[turn.number].taken == size()) theirs.erase(turn.number);
      }
      if (kept) return;
      const auto all_took = [&] { return mine()[turn.number].taken == size(); };
      if (!shared_->wait(lock, turn.generation, turn.what, all_took))
        fault("threads", "rank {} waited {} s until all had taken its part: {}", rank(), shared_->seconds(), turn.what);
    } catch (...) {
      if (shared_->aborted) heard_abort();
      // What we offered lives no longer than this call.
      if (!kept && turn.generation == shared_->generation) {
        shared_->changed.wait(lock, [&] { return mine()[turn.number].copying == 0; });
        mine().erase(turn.number);
      }
      throw;
    }
    mine().erase(turn.number);
  }

  // All ranks compare, and all find somebody who differs.
  void compare(const Descriptor& mine, int other, const Descriptor& theirs) {
    if (theirs == mine) return;
    const std::string cause = mismatch(rank(), mine, other, theirs);
    shared_->abort(fmt::format("[threads] rank {} gave up: {}", rank_of_all_, cause));
    fault("threads", "{}", cause);
  }

  // Copies without the lock; the offer stays meanwhile.
  void copy(Shared::Lock& lock, Shared::Offer& offer, const std::function<void(const void*)>& take) {
    ++offer.copying;
    lock.unlock();
    std::exception_ptr failed;
    try {
      take(offer.data);
    } catch (...) {
      failed = std::current_exception();
    }
    lock.lock();
    --offer.copying;
    ++offer.taken;
    shared_->changed.notify_all();
    if (failed) std::rethrow_exception(failed);
  }

  std::map<uint64_t, Shared::Offer>& mine() { return circle_->offers[static_cast<size_t>(rank())]; }

  std::shared_ptr<Shared> shared_;
  std::shared_ptr<Shared::Circle> circle_;
  int rank_of_all_;
  uint64_t generation_ = 0, next_ = 0;
  std::map<std::string, int> subgroups_;
};

ThreadGroup::ThreadGroup(int size, std::chrono::milliseconds timeout)
    : shared_(std::make_shared<Shared>(size, timeout)) {}
ThreadGroup::~ThreadGroup() = default;
std::unique_ptr<Transport> ThreadGroup::transport(int rank) {
  auto circle = shared_->join("all", static_cast<size_t>(shared_->size));
  return std::make_unique<ThreadTransport>(shared_, std::move(circle), rank, rank,
                                           Topology::one_host(shared_->size, Topology::Memory::separate));
}

}  // namespace sherd
