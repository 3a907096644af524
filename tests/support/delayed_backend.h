// A c10d backend whose collectives take long: for tests of what goes on meanwhile.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <queue>
#include <string>
#include <thread>
#include <vector>

namespace sherd::testing {

/// What happened, in order: "all_gather starts", "all_gather ends", and what the test itself adds.
class Events {
 public:
  void add(std::string event) {
    const std::lock_guard lock(mutex_);
    list_.push_back(std::move(event));
  }
  std::vector<std::string> list() const {
    const std::lock_guard lock(mutex_);
    return list_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> list_;
};

/// Wraps a backend: each collective ends `delay` after it was started at the earliest, in the background, one after the
/// other in the order in which they were started. Those of control (barriers, norms, descriptors) are not delayed.
class DelayedBackend : public c10d::Backend {
 public:
  using Inner = c10::intrusive_ptr<c10d::Backend>;
  using AWork = c10::intrusive_ptr<c10d::Work>;

  DelayedBackend(Inner inner, std::chrono::milliseconds delay, Events& events)
      : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)), delay_(delay), events_(events) {
    thread_ = std::thread([this] { run(); });
  }
  ~DelayedBackend() override {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  const std::string getBackendName() const override { return "delayed"; }
  void abort() override { inner_->abort(); }

  AWork _allgather_base(at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions& options) override {
    const bool control = in.nbytes() % kShardUnit != 0;
    return delayed(inner_->_allgather_base(out, in, options), control ? "" : "all_gather");
  }
  AWork alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_counts,
                      std::vector<int64_t>& in_counts, const c10d::AllToAllOptions& options) override {
    return delayed(inner_->alltoall_base(out, in, out_counts, in_counts, options), "all_to_all");
  }

 private:
  static constexpr size_t kShardUnit = 64;  // bytes, of which shards are a multiple and messages are not

  /// Ends when the thread says so.
  struct Late : c10d::Work {
    using Work::finish;
  };
  struct Item {
    AWork inner;
    c10::intrusive_ptr<Late> late;
    std::string name;
    std::chrono::steady_clock::time_point due;
  };

  AWork delayed(AWork inner, std::string name) {
    if (name.empty()) return inner;
    auto late = c10::make_intrusive<Late>();
    {
      const std::lock_guard lock(mutex_);
      events_.add(name + " starts");
      items_.push({std::move(inner), late, std::move(name), std::chrono::steady_clock::now() + delay_});
    }
    changed_.notify_all();
    return late;
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return over_ || !items_.empty(); });
      if (items_.empty()) return;
      Item item = std::move(items_.front());
      items_.pop();
      lock.unlock();
      std::this_thread::sleep_until(item.due);
      std::exception_ptr error;
      try {
        item.inner->wait();
      } catch (...) {
        error = std::current_exception();
      }
      events_.add(item.name + " ends");
      item.late->finish(error);
      lock.lock();
    }
  }

  Inner inner_;
  std::chrono::milliseconds delay_;
  Events& events_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<Item> items_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace sherd::testing
