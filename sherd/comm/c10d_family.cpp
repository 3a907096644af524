#include "sherd/comm/c10d_family.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "sherd/base/error.h"
#include "sherd/base/fnv.h"

namespace sherd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kLongestPause{50};
constexpr const char* kRecovered = "recovered";
constexpr const char* kNothingToRecover = "nothing to recover";

std::string boot() {
  std::string text;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), text);
  return text;
}

// Two processes whose namespaces have the same name can watch each other.
std::string namespace_of_processes() {
  char link[64] = {};
  return readlink("/proc/self/ns/pid", link, sizeof(link) - 1) < 0 ? "" : link;
}

// One rank, as it shows itself to the others.
struct Self {
  std::string pid, processes, host;

  std::string text() const { return fmt::format("{}\n{}\n{}", pid, processes, host); }
  static Self of(const std::string& text) {
    const size_t first = text.find('\n'), second = text.find('\n', first + 1);
    return {text.substr(0, first), text.substr(first + 1, second - first - 1), text.substr(second + 1)};
  }
};

std::string text_at(c10d::Store& store, const std::string& key) {
  const auto bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

uint64_t hash_of(const std::string& text) {
  Fnv hash;
  hash.add(text);
  return hash.value();
}

}  // namespace

C10dFamily::C10dFamily(const World& world, std::string name) : world_(world), name_(std::move(name)) {
  const std::string host = boot(), processes = namespace_of_processes();
  const Self me{std::to_string(getpid()), host.empty() || processes.empty() ? "" : host + processes,
                !world.host.empty() ? world.host
                : !host.empty()     ? host
                                    : fmt::format("rank {}", world.rank)};
  std::vector<pid_t> pids;
  std::vector<uint64_t> hosts;
  std::vector<std::string> texts;
  try {
    texts = gather_texts(world, "self", me.text());
  } catch (const std::exception& error) {
    fault(name_, "rank {} of {} could not connect: {}", world.rank, world.size, first_line(error.what()));
  }
  for (const std::string& text : texts) {
    const Self peer = Self::of(text);
    pids.push_back(!me.processes.empty() && peer.processes == me.processes ? std::stoi(peer.pid) : 0);
    hosts.push_back(hash_of(peer.host));
  }
  watch_ = PeerWatch(pids);
  topology_.emplace(hosts, Topology::Memory::separate);
}

std::string C10dFamily::abort_key() const { return fmt::format("abort/{}", generation_); }

void C10dFamily::tell_abort(std::string_view cause) noexcept {
  try {
    world_.store->compareSet(abort_key(), std::string(),
                             fmt::format("[{}] rank {} gave up: {}", name_, world_.rank, cause));
  } catch (...) {  // Nobody left to tell.
  }
}

std::optional<std::string> C10dFamily::heard() const noexcept {
  try {
    if (world_.store->check({abort_key()})) return text_at(*world_.store, abort_key());
  } catch (...) {  // The store went with its server: nothing more to learn there.
  }
  return std::nullopt;
}

void C10dFamily::finish() noexcept {
  try {
    world_.store->set(fmt::format("finished/{}", world_.rank), "1");
  } catch (...) {  // The store went with its server.
  }
}

bool C10dFamily::has_finished(int rank) const noexcept {
  try {
    return world_.store->check({fmt::format("finished/{}", rank)});
  } catch (...) {
    return false;
  }
}

void C10dFamily::tell_place(const std::string& place) noexcept {
  try {
    world_.store->set(fmt::format("place/{}", world_.rank), place);
  } catch (...) {
  }
}

std::string C10dFamily::who_is_where() const {
  std::string text;
  try {
    for (int r = 0; r < world_.size; ++r) {
      const std::string key = fmt::format("place/{}", r);
      if (has_finished(r))
        text += fmt::format("rank {} has finished, ", r);
      else if (world_.store->check({key}) && !text_at(*world_.store, key).empty())
        text += fmt::format("rank {} is in {}, ", r, text_at(*world_.store, key));
      else
        text += fmt::format("rank {} waits in none of sherd's calls, ", r);
    }
  } catch (const std::exception&) {
    return "";
  }
  return text.substr(0, text.size() - 2) + "; ";
}

void C10dFamily::await(const std::string& key, int rank) const {
  const auto deadline = Clock::now() + world_.timeout;
  for (auto pause = milliseconds(1); !world_.store->check({key}); pause = std::min(2 * pause, kLongestPause)) {
    const auto dead = watch_.dead_rank();
    if (dead && !world_.store->check({key})) fault(name_, "rank {} died before it recovered", *dead);
    if (Clock::now() > deadline)
      fault(name_, "rank {} waited {} s for rank {} to recover", world_.rank,
            static_cast<double>(world_.timeout.count()) / 1000, rank);
    std::this_thread::sleep_for(pause);
  }
}

// All ranks end alike, by the first verdict: that of a rank for which somebody did not come, or, once all have come,
// that of rank 0 on whether there was an abort: until it is there, nobody can abort anew.
std::string C10dFamily::verdict_of_meeting() {
  const std::string prefix = fmt::format("recover/{}/", meetings_++);
  const std::string verdict_key = prefix + "verdict";
  const auto judge = [&](const std::string& verdict) {
    world_.store->compareSet(verdict_key, std::string(), verdict);
    return text_at(*world_.store, verdict_key);
  };
  try {
    world_.store->set(fmt::format("{}{}", prefix, world_.rank), "here");
    for (int r = 0; r < world_.size; ++r) await(fmt::format("{}{}", prefix, r), r);
    if (world_.rank == 0) return judge(world_.store->check({abort_key()}) ? kRecovered : kNothingToRecover);
    await(verdict_key, 0);
    return text_at(*world_.store, verdict_key);
  } catch (const FaultError& error) {
    return judge(error.what());
  }
}

C10dFamily::Meeting C10dFamily::meet_for_recovery() {
  std::string verdict;
  try {
    verdict = verdict_of_meeting();
  } catch (const std::exception& error) {
    const auto dead = watch_.dead_rank();
    verdict = dead ? fmt::format("[{}] rank {} died before it recovered", name_, *dead)
                   : fmt::format("[{}] the store is gone: {}", name_, first_line(error.what()));
  }
  if (verdict == kRecovered) return Meeting::recovered;
  if (verdict == kNothingToRecover) return Meeting::nothing_to_recover;
  throw FaultError(verdict);
}

}  // namespace sherd
