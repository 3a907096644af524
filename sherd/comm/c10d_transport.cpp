#include "sherd/comm/c10d_transport.h"

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <fstream>
#include <thread>

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr const char* kAbortKey = "sherd/c10d/abort";

// Two processes with the same name can watch each other: same boot, same process-number namespace.
std::string host_name_of_processes() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  char link[64] = {};
  if (readlink("/proc/self/ns/pid", link, sizeof(link) - 1) < 0) return "";
  return boot + link;
}

}  // namespace

C10dTransport::C10dTransport(const World& world, c10::intrusive_ptr<c10d::Backend> backend, std::string name)
    : Transport(world.rank, world.size), world_(world), backend_(std::move(backend)), name_(std::move(name)) {
  const std::string host = host_name_of_processes();
  world.store->set(fmt::format("sherd/c10d/pid/{}", rank()), fmt::format("{} {}", getpid(), host));
  std::vector<pid_t> pids(static_cast<size_t>(size()), 0);
  for (int r = 0; r < size(); ++r) {
    const auto bytes = world.store->get(fmt::format("sherd/c10d/pid/{}", r));
    const std::string text(bytes.begin(), bytes.end());
    const size_t space = text.find(' ');
    if (!host.empty() && text.substr(space + 1) == host) pids[static_cast<size_t>(r)] = std::stoi(text);
  }
  watch_ = PeerWatch(pids);
}

void C10dTransport::failed(const char* what, const std::exception& error) {
  // A broken connection shows a moment before the process is gone, and an abort a moment before its cause.
  for (int tries = 0; tries < 10; ++tries) {
    // Who ends because of an error has left its cause before: where there is none, the dead rank is the cause itself.
    const auto dead = watch_.dead_rank();
    try {
      if (world_.store->check({kAbortKey})) {
        const auto cause = world_.store->get(kAbortKey);
        throw FaultError(std::string(cause.begin(), cause.end()));
      }
    } catch (const FaultError&) {
      throw;
    } catch (const std::exception&) {  // The store went with its server: nothing more to learn there.
    }
    if (dead) {
      const std::string cause = fmt::format("rank {} died during {}", *dead, what);
      abort(cause);
      fault(name_, "{}", cause);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  fault(name_, "{} failed on rank {}: {}", what, rank(), error.what());
}

Pending C10dTransport::pending(c10::intrusive_ptr<c10d::Work> work, std::vector<at::Tensor> held, const char* what) {
  return Pending([this, work = std::move(work), held = std::move(held), what] {
    try {
      work->wait();
    } catch (const std::exception& error) {
      failed(what, error);
    }
  });
}

std::vector<double> C10dTransport::exchange(std::span<const double> values) {
  // One value more, so that an empty exchange is a barrier too.
  const auto count = static_cast<int64_t>(values.size()) + 1;
  at::Tensor mine = at::zeros({count}, at::kDouble);
  std::copy(values.begin(), values.end(), mine.data_ptr<double>());
  at::Tensor all = at::empty({count * size()}, at::kDouble);
  try {
    backend_->_allgather_base(all, mine)->wait();
  } catch (const FaultError&) {
    throw;
  } catch (const std::exception& error) {
    failed("an exchange", error);
  }
  std::vector<double> result;
  result.reserve(values.size() * static_cast<size_t>(size()));
  const double* data = all.const_data_ptr<double>();
  for (int r = 0; r < size(); ++r) result.insert(result.end(), data + r * count, data + (r + 1) * count - 1);
  bytes_sent_ += count * 8 * (size() - 1);
  return result;
}

Pending C10dTransport::all_gather(const at::Tensor& shard, const at::Tensor& whole) {
  at::Tensor in = shard, out = whole;
  bytes_sent_ += shard.numel() * shard.element_size() * (size() - 1);
  try {
    return pending(backend_->_allgather_base(out, in), {in, out}, "an all-gather");
  } catch (const std::exception& error) {
    failed("an all-gather", error);
  }
}

Pending C10dTransport::all_to_all(const at::Tensor& send, const at::Tensor& received) {
  at::Tensor in = send, out = received;
  std::vector<int64_t> even;
  bytes_sent_ += send.numel() * send.element_size() / size() * (size() - 1);
  try {
    return pending(backend_->alltoall_base(out, in, even, even), {in, out}, "an all-to-all");
  } catch (const std::exception& error) {
    failed("an all-to-all", error);
  }
}

void C10dTransport::abort(std::string_view cause) noexcept {
  try {
    const std::string text = fmt::format("[{}] rank {} gave up: {}", name_, rank(), cause);
    world_.store->compareSet(kAbortKey, std::string(), text);  // The first cause stays.
  } catch (...) {                                                         // Nobody left to tell.
  }
}

}  // namespace sherd
