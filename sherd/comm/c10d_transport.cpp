#include "sherd/comm/c10d_transport.h"

#include <fmt/ranges.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <thread>

#include "sherd/base/error.h"
#include "sherd/comm/store_backend.h"

namespace sherd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kSlice{100};
constexpr milliseconds kUntilCauseShows{500};
constexpr milliseconds kUntilPlaceIsTold{1000};

// Backends do not know all types, but all know bytes.
at::Tensor bytes_of(const at::Tensor& tensor) { return tensor.view(at::kByte); }

}  // namespace

C10dTransport::C10dTransport(const World& world, BackendFactory factory, std::string name, Moves moves)
    : C10dTransport(std::make_shared<Shared>(Shared{.family = {with_fresh_store(world, "c10d"), std::move(name)},
                                                    .factory = std::move(factory),
                                                    .moves = moves})) {}

C10dTransport::C10dTransport(std::shared_ptr<Shared> shared)
    : C10dTransport(shared, shared->family.world(), shared->family.topology()) {}

C10dTransport::C10dTransport(std::shared_ptr<Shared> shared, World world, Topology topology)
    : Transport(world.rank, std::move(topology)), shared_(std::move(shared)), world_(std::move(world)) {
  connect();
  shared_->members.push_back(this);
}

C10dTransport::~C10dTransport() { std::erase(shared_->members, this); }

void C10dTransport::connect() {
  generation_ = shared_->family.generation();
  World world = world_;
  world.store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("backend/{}", generation_), world_.store);
  data_ = shared_->factory(world);
  control_ = data_;
  if (shared_->moves == Moves::device_tensors)
    control_ = c10::make_intrusive<StoreBackend>(with_fresh_store(world, "control"));
}

c10d::Backend& C10dTransport::data() {
  if (!data_ || generation_ != shared_->family.generation()) connect();
  return *data_;
}

c10d::Backend& C10dTransport::control() {
  data();
  return *control_;
}

// An exchange that one rank has left is about to end on the others too: it must not be broken off there because of what
// that rank did next.
void C10dTransport::break_off() noexcept {
  std::this_thread::sleep_for(kSlice);
  for (C10dTransport* member : shared_->members) {
    for (const auto& backend : {member->data_, member->control_}) {
      try {
        if (backend) backend->abort();
      } catch (...) {  // It is of no more use either way.
      }
    }
  }
}

void C10dTransport::look_for_trouble(std::string_view what) {
  // Who ends because of an error has left its cause before: where there is none, the dead rank is the cause itself.
  const C10dFamily& family = shared_->family;
  const auto dead = family.watch().dead_rank();
  std::optional<std::string> cause = family.heard();
  if (!cause && dead) {
    const std::string text =
        family.has_finished(*dead)
            ? fmt::format("rank {} has finished; rank {} is in {}, which waits for it; try the same calls on all ranks",
                          *dead, rank(), call().empty() ? what : call())
            : fmt::format("rank {} died during {}", *dead, what);
    abort(text);
    cause = fmt::format("[{}] {}", name(), text);
  }
  if (!cause) return;
  heard_abort();
  break_off();
  throw FaultError(*cause);
}

void C10dTransport::failed(const char* what, const std::exception& error) {
  // A broken connection shows a moment before the process is gone, and an abort a moment before its cause.
  for (const auto end = Clock::now() + kUntilCauseShows; Clock::now() < end;) {
    look_for_trouble(what);
    std::this_thread::sleep_for(milliseconds(20));
  }
  const C10dFamily& family = shared_->family;
  std::string cause = fmt::format("{} failed on rank {}: {}", what, rank(), first_line(error.what()));
  if (const std::string places = family.who_is_where(); !places.empty())
    cause += fmt::format("; {}try the same calls on all ranks, or a longer {} if some are only slow", places,
                         world_.timeout_argument);
  if (const auto stopped = family.watch().stopped_rank())
    cause += fmt::format("; rank {} is stopped; try to let it go on (SIGCONT) sooner", *stopped);
  abort(cause);
  fault(name(), "{}", cause);
}

void C10dTransport::wait(c10d::Work& work, const char* what) {
  const auto late = Clock::now() + std::min(kUntilPlaceIsTold, world_.timeout / 2);
  bool told = false;  // where this rank is: by who waits long, once a wait
  const auto came = [&] {
    if (told) shared_->family.tell_place("");
  };
  const auto deadline = Clock::now() + world_.timeout + 5 * kSlice;  // a backend's own time-out comes first
  while (true) {
    try {
      work.wait(kSlice);
      return came();
    } catch (const std::exception& error) {
      if (Clock::now() > deadline) failed(what, error);
      if (!work.isCompleted()) {
        if (!told && Clock::now() > late) {
          told = true;
          shared_->family.tell_place(call().empty() ? what : fmt::format("{} ({})", call(), what));
        }
        try {
          look_for_trouble(what);
        } catch (const FaultError&) {
          // What is under way ends now, and must have before its buffers are used again.
          try {
            work.wait(world_.timeout);
          } catch (const std::exception&) {
          }
          throw;
        }
        continue;
      }
    }
    try {  // It ended meanwhile, well or not.
      work.wait();
      return came();
    } catch (const std::exception& error) {
      failed(what, error);
    }
  }
}

// All ranks compare, and all find somebody who differs.
void C10dTransport::compare_up_to(uint64_t number) {
  while (!comparisons_.empty() && comparisons_.front().number <= number) {
    const Comparison comparison = std::move(comparisons_.front());
    comparisons_.pop_front();
    wait(*comparison.work, comparison.what);
    const auto* all = static_cast<const Descriptor*>(comparison.descriptors.const_data_ptr());
    for (int r = 0; r < size(); ++r) {
      if (all[r] == all[rank()]) continue;
      const std::string cause = mismatch(rank(), all[rank()], r, all[r]);
      abort(cause);
      fault(name(), "{}", cause);
    }
  }
}

// Where the device works on its own, this thread has nothing to wait for.
bool C10dTransport::compares(const at::Tensor& sent) const {
  return sent.is_cpu() && shared_->moves == Moves::cpu_tensors;
}

Pending C10dTransport::start(const char* what, const Descriptor& descriptor, std::vector<at::Tensor> held,
                             const Collective& collective) {
  const uint64_t number = ++started_;
  const bool compared = descriptor.kind == Descriptor::Kind::exchange || compares(held.front());
  c10::intrusive_ptr<c10d::Work> work;
  try {
    if (compared) {
      at::Tensor mine = at::empty({static_cast<int64_t>(sizeof(Descriptor))}, at::kByte);
      at::Tensor all = at::empty({mine.numel() * size()}, at::kByte);
      std::memcpy(mine.mutable_data_ptr(), &descriptor, sizeof(descriptor));
      comparisons_.push_back({number, control()._allgather_base(all, mine), all, what});
    }
    work = collective();
  } catch (const FaultError&) {
    throw;
  } catch (const std::exception& error) {
    failed(what, error);
  }
  return Pending([=, this, generation = generation_, held = std::move(held)] {
    if (generation != shared_->family.generation()) fault(name(), "{} was broken off by an abort", what);
    if (compared) {
      compare_up_to(number);
      return wait(*work, what);
    }
    try {
      work->wait();  // orders the device's work, without blocking this thread
    } catch (const std::exception& error) {
      failed(what, error);
    }
  });
}

void C10dTransport::run_exchange(const Part& mine, std::span<std::byte> all) {
  // One byte more, so that an empty exchange is a barrier too.
  const auto bytes = static_cast<int64_t>(mine.bytes().size()), count = bytes + 1;
  at::Tensor send = at::zeros({count}, at::kByte), received = at::empty({count * size()}, at::kByte);
  if (bytes > 0) std::memcpy(send.mutable_data_ptr(), mine.data, static_cast<size_t>(bytes));
  start("an exchange", {Descriptor::Kind::exchange, mine.elements, purpose(), mine.element_bytes}, {received, send},
        [&] { return control()._allgather_base(received, send); })
      .wait();
  const auto* data = static_cast<const std::byte*>(received.const_data_ptr());
  for (int r = 0; r < size(); ++r) std::copy_n(data + r * count, bytes, all.begin() + r * bytes);
  bytes_sent_ += count * (size() - 1);
}

Pending C10dTransport::all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) {
  at::Tensor in = bytes_of(shard), out = bytes_of(whole);
  bytes_sent_ += in.numel() * (size() - 1);
  return start("an all-gather", {Descriptor::Kind::all_gather, shard.numel(), what, shard.element_size()}, {in, out},
               [&] { return data()._allgather_base(out, in); });
}

Pending C10dTransport::all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) {
  at::Tensor in = bytes_of(send), out = bytes_of(received);
  std::vector<int64_t> even;
  bytes_sent_ += in.numel() / size() * (size() - 1);
  return start("an all-to-all", {Descriptor::Kind::all_to_all, send.numel(), what, send.element_size()}, {in, out},
               [&] { return data().alltoall_base(out, in, even, even); });
}

std::shared_ptr<Transport> C10dTransport::make_subgroup(const std::vector<int>& ranks, int place) {
  World world = world_;
  world.rank = place;
  world.size = static_cast<int>(ranks.size());
  world = with_fresh_store(world, fmt::format("group/{}", fmt::join(ranks, ",")));
  return std::shared_ptr<Transport>(new C10dTransport(shared_, world, topology().among(ranks)));
}

void C10dTransport::tell_abort(std::string_view cause) noexcept {
  shared_->family.tell_abort(cause);
  break_off();
}

void C10dTransport::run_recovery() {
  C10dFamily& family = shared_->family;
  try {
    if (family.meet_for_recovery() == C10dFamily::Meeting::nothing_to_recover) return;
  } catch (const FaultError& error) {
    abort(error.what());
    throw;
  }
  break_off();
  for (C10dTransport* member : shared_->members) {
    member->comparisons_.clear();
    member->data_.reset();  // returns when nothing is under way
    member->control_.reset();
  }
  family.forget_abort();
  for (C10dTransport* member : shared_->members) member->connect();  // in the order in which all ranks have made them
}

}  // namespace sherd
