#include "sherd/comm/c10d_transport.h"

#include <fmt/ranges.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <fstream>
#include <thread>

#include "sherd/base/error.h"

namespace sherd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kSlice{100};
constexpr milliseconds kUntilCauseShows{500};
constexpr milliseconds kUntilPlaceIsTold{1000};
constexpr const char* kRecovered = "recovered";
constexpr const char* kNothingToRecover = "nothing to recover";

// Two processes with the same name can watch each other: same boot, same process-number namespace.
std::string host_name_of_processes() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  char link[64] = {};
  if (readlink("/proc/self/ns/pid", link, sizeof(link) - 1) < 0) return "";
  return boot + link;
}

std::string text_at(c10d::Store& store, const std::string& key) {
  const auto bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

PeerWatch watch_peers(const World& world) {
  const std::string host = host_name_of_processes();
  world.store->set(fmt::format("pid/{}", world.rank), fmt::format("{} {}", getpid(), host));
  std::vector<pid_t> pids(static_cast<size_t>(world.size), 0);
  for (int r = 0; r < world.size; ++r) {
    const std::string text = text_at(*world.store, fmt::format("pid/{}", r));
    const size_t space = text.find(' ');
    if (!host.empty() && text.substr(space + 1) == host) pids[static_cast<size_t>(r)] = std::stoi(text);
  }
  return PeerWatch(pids);
}

}  // namespace

C10dTransport::C10dTransport(const World& world, BackendFactory factory, std::string name)
    : C10dTransport(std::make_shared<Family>(
          Family{.world = with_fresh_store(world, "c10d"), .factory = std::move(factory), .name = std::move(name)})) {}

C10dTransport::C10dTransport(std::shared_ptr<Family> family) : C10dTransport(family, family->world) {
  family_->watch = watch_peers(world_);
}

C10dTransport::C10dTransport(std::shared_ptr<Family> family, World world)
    : Transport(world.rank, world.size), family_(std::move(family)), world_(std::move(world)) {
  backend();
  family_->members.push_back(this);
}

C10dTransport::~C10dTransport() { std::erase(family_->members, this); }

c10d::Backend& C10dTransport::backend() {
  if (!backend_ || generation_ != family_->generation) {
    generation_ = family_->generation;
    World world = world_;
    world.store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("backend/{}", generation_), world_.store);
    backend_ = family_->factory(world);
  }
  return *backend_;
}

std::string C10dTransport::abort_key() const { return fmt::format("abort/{}", family_->generation); }

// An exchange that one rank has left is about to end on the others too: it must not be broken off there because of what
// that rank did next.
void C10dTransport::break_off() noexcept {
  std::this_thread::sleep_for(kSlice);
  for (C10dTransport* member : family_->members) {
    try {
      if (member->backend_) member->backend_->abort();
    } catch (...) {  // It is of no more use either way.
    }
  }
}

void C10dTransport::look_for_trouble(std::string_view what) {
  // Who ends because of an error has left its cause before: where there is none, the dead rank is the cause itself.
  const auto dead = family_->watch.dead_rank();
  std::optional<std::string> cause;
  try {
    if (family_->world.store->check({abort_key()})) cause = text_at(*family_->world.store, abort_key());
  } catch (const std::exception&) {  // The store went with its server: nothing more to learn there.
  }
  if (!cause && dead) {
    const std::string text =
        has_finished(*dead)
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
  std::string cause = fmt::format("{} failed on rank {}: {}", what, rank(), first_line(error.what()));
  if (const std::string places = who_is_where(); !places.empty())
    cause += fmt::format("; {}try the same calls on all ranks, or a longer {} if some are only slow", places,
                         world_.timeout_argument);
  if (const auto stopped = family_->watch.stopped_rank())
    cause += fmt::format("; rank {} is stopped; try to let it go on (SIGCONT) sooner", *stopped);
  abort(cause);
  fault(name(), "{}", cause);
}

void C10dTransport::finish() noexcept {
  try {
    family_->world.store->set(fmt::format("finished/{}", family_->world.rank), "1");
  } catch (...) {  // The store went with its server.
  }
}

bool C10dTransport::has_finished(int rank) const {
  try {
    return family_->world.store->check({fmt::format("finished/{}", rank)});
  } catch (const std::exception&) {
    return false;
  }
}

void C10dTransport::tell_place(const std::string& place) noexcept {
  try {
    family_->world.store->set(fmt::format("place/{}", family_->world.rank), place);
  } catch (...) {
  }
}

std::string C10dTransport::who_is_where() const {
  const World& world = family_->world;
  std::string text;
  try {
    for (int r = 0; r < world.size; ++r) {
      const std::string key = fmt::format("place/{}", r);
      if (has_finished(r))
        text += fmt::format("rank {} has finished, ", r);
      else if (world.store->check({key}) && !text_at(*world.store, key).empty())
        text += fmt::format("rank {} is in {}, ", r, text_at(*world.store, key));
      else
        text += fmt::format("rank {} waits in none of sherd's calls, ", r);
    }
  } catch (const std::exception&) {
    return "";
  }
  return text.substr(0, text.size() - 2) + "; ";
}

void C10dTransport::wait(c10d::Work& work, const char* what) {
  const auto late = Clock::now() + std::min(kUntilPlaceIsTold, world_.timeout / 2);
  bool told = false;  // where this rank is: by who waits long, once a wait
  const auto came = [&] {
    if (told) tell_place("");
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
          tell_place(call().empty() ? what : fmt::format("{} ({})", call(), what));
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

Pending C10dTransport::start(const char* what, const Descriptor& descriptor, std::vector<at::Tensor> held,
                             const std::function<c10::intrusive_ptr<c10d::Work>(c10d::Backend&)>& collective) {
  const uint64_t number = ++started_;
  const bool on_cpu = held.front().is_cpu();  // elsewhere a backend cannot send descriptors
  c10::intrusive_ptr<c10d::Work> work;
  try {
    if (on_cpu) {
      at::Tensor mine = at::empty({static_cast<int64_t>(sizeof(Descriptor))}, at::kByte);
      at::Tensor all = at::empty({mine.numel() * size()}, at::kByte);
      std::memcpy(mine.mutable_data_ptr(), &descriptor, sizeof(descriptor));
      comparisons_.push_back({number, backend()._allgather_base(all, mine), all, what});
    }
    work = collective(backend());
  } catch (const FaultError&) {
    throw;
  } catch (const std::exception& error) {
    failed(what, error);
  }
  return Pending([=, this, generation = generation_, held = std::move(held)] {
    if (generation != family_->generation) fault(name(), "{} was broken off by an abort", what);
    if (on_cpu) {
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

std::vector<double> C10dTransport::exchange(std::span<const double> values) {
  // One value more, so that an empty exchange is a barrier too.
  const auto count = static_cast<int64_t>(values.size()) + 1;
  at::Tensor mine = at::zeros({count}, at::kDouble);
  std::copy(values.begin(), values.end(), mine.data_ptr<double>());
  at::Tensor all = at::empty({count * size()}, at::kDouble);
  start("an exchange", {Descriptor::Kind::exchange, count - 1, purpose()}, {all, mine}, [&](c10d::Backend& backend) {
    return backend._allgather_base(all, mine);
  }).wait();
  std::vector<double> result;
  result.reserve(values.size() * static_cast<size_t>(size()));
  const double* data = all.const_data_ptr<double>();
  for (int r = 0; r < size(); ++r) result.insert(result.end(), data + r * count, data + (r + 1) * count - 1);
  bytes_sent_ += count * 8 * (size() - 1);
  return result;
}

Pending C10dTransport::all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view what) {
  at::Tensor in = shard, out = whole;
  bytes_sent_ += shard.numel() * shard.element_size() * (size() - 1);
  return start("an all-gather", {Descriptor::Kind::all_gather, in.numel(), what}, {in, out},
               [&](c10d::Backend& backend) { return backend._allgather_base(out, in); });
}

Pending C10dTransport::all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view what) {
  at::Tensor in = send, out = received;
  std::vector<int64_t> even;
  bytes_sent_ += send.numel() * send.element_size() / size() * (size() - 1);
  return start("an all-to-all", {Descriptor::Kind::all_to_all, in.numel(), what}, {in, out},
               [&](c10d::Backend& backend) { return backend.alltoall_base(out, in, even, even); });
}

std::shared_ptr<Transport> C10dTransport::subgroup(const std::vector<int>& ranks) {
  World world = world_;
  world.rank = place_among(ranks);
  world.size = static_cast<int>(ranks.size());
  if (world.size == 1) return solo_transport();
  world = with_fresh_store(world, fmt::format("group/{}", fmt::join(ranks, ",")));
  const std::shared_ptr<Transport> group(new C10dTransport(family_, world));
  adopt(*group);
  return group;
}

void C10dTransport::tell_abort(std::string_view cause) noexcept {
  try {
    const std::string text = fmt::format("[{}] rank {} gave up: {}", name(), family_->world.rank, cause);
    family_->world.store->compareSet(abort_key(), std::string(), text);  // The first cause stays.
  } catch (...) {                                                        // Nobody left to tell.
  }
  break_off();
}

void C10dTransport::await(const std::string& key, int rank) const {
  const auto deadline = Clock::now() + world_.timeout;
  for (auto pause = milliseconds(1); !family_->world.store->check({key}); pause = std::min(2 * pause, kSlice / 2)) {
    const auto dead = family_->watch.dead_rank();
    if (dead && !family_->world.store->check({key})) fault(name(), "rank {} died before it recovered", *dead);
    if (Clock::now() > deadline)
      fault(name(), "rank {} waited {} s for rank {} to recover", family_->world.rank,
            static_cast<double>(world_.timeout.count()) / 1000, rank);
    std::this_thread::sleep_for(pause);
  }
}

// All ranks end alike, by the first verdict: that of a rank for which somebody did not come, or, once all have come,
// that of rank 0 on whether there was an abort: until it is there, nobody can abort anew.
std::string C10dTransport::meet_for_recovery() {
  const World& world = family_->world;
  const std::string prefix = fmt::format("recover/{}/", family_->meetings++);
  const std::string verdict_key = prefix + "verdict";
  const auto judge = [&](const std::string& verdict) {
    world.store->compareSet(verdict_key, std::string(), verdict);
    return text_at(*world.store, verdict_key);
  };
  try {
    world.store->set(fmt::format("{}{}", prefix, world.rank), "here");
    for (int r = 0; r < world.size; ++r) await(fmt::format("{}{}", prefix, r), r);
    if (world.rank == 0) return judge(world.store->check({abort_key()}) ? kRecovered : kNothingToRecover);
    await(verdict_key, 0);
    return text_at(*world.store, verdict_key);
  } catch (const FaultError& error) {
    return judge(error.what());
  }
}

void C10dTransport::run_recovery() {
  std::string verdict;
  try {
    verdict = meet_for_recovery();
  } catch (const std::exception& error) {
    const auto dead = family_->watch.dead_rank();
    verdict = dead ? fmt::format("[{}] rank {} died before it recovered", name(), *dead)
                   : fmt::format("[{}] the store is gone: {}", name(), first_line(error.what()));
  }
  if (verdict == kNothingToRecover) return;
  if (verdict != kRecovered) {
    abort(verdict);
    throw FaultError(verdict);
  }
  break_off();
  for (C10dTransport* member : family_->members) {
    member->comparisons_.clear();
    member->backend_.reset();  // returns when nothing is under way
  }
  ++family_->generation;
  for (C10dTransport* member : family_->members) member->backend();  // in the order in which all ranks have made them
}

}  // namespace sherd
