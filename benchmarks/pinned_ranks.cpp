#include "benchmarks/pinned_ranks.h"

#include <ATen/Parallel.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <torch/csrc/distributed/c10d/FileStore.hpp>

#include "sherd/base/error.h"

namespace sherd::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kTimeout = std::chrono::minutes(2);
constexpr const char* kWhere = "benchmark";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<int> allowed_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) fault_errno(kWhere, "cannot ask for the cores");
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  return cores;
}

void pin_to(int core) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  if (sched_setaffinity(0, sizeof(one), &one) != 0) fault_errno(kWhere, fmt::format("cannot pin to core {}", core));
}

/// CPU time of this machine that did not go to our ended children.
double others_busy_s() {
  std::string name;
  double user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
  std::ifstream("/proc/stat") >> name >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal;
  rusage ours = {};
  getrusage(RUSAGE_CHILDREN, &ours);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  const double all = (user + nice + system + irq + softirq + steal) / static_cast<double>(sysconf(_SC_CLK_TCK));
  return all - seconds(ours.ru_utime) - seconds(ours.ru_stime);
}

/// A folder that is gone at the end.
struct TemporaryFolder {
  std::string path = (std::filesystem::temp_directory_path() / "sherd-bench-XXXXXX").string();
  TemporaryFolder() {
    if (mkdtemp(path.data()) == nullptr) fault_errno(kWhere, "cannot make a temporary folder");
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

int run_rank(int rank, int ranks, const std::string& folder, const std::function<void(const World&)>& body) {
  try {
    const std::vector<int> cores = allowed_cores();
    pin_to(cores[static_cast<size_t>(rank) % cores.size()]);
    at::set_num_threads(1);
    World world{.rank = rank, .size = ranks, .local_rank = rank, .store = nullptr, .timeout = kTimeout};
    world.store = c10::make_intrusive<c10d::FileStore>(folder + "/store", ranks);
    world.store->setTimeout(kTimeout);
    body(world);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    return 1;
  }
}

// Returns how many cores other processes kept busy meanwhile.
double run_ranks(int ranks, const std::function<void(const World&)>& body) {
  const TemporaryFolder folder;
  const auto start = Clock::now();
  const double busy = others_busy_s();
  std::fflush(nullptr);
  const pid_t parent = getpid();
  std::vector<pid_t> pids;
  for (int rank = 0; rank < ranks; ++rank) {
    pids.push_back(fork());
    if (pids.back() < 0) fault_errno(kWhere, fmt::format("cannot start rank {}", rank));
    if (pids.back() != 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int code = getppid() == parent ? run_rank(rank, ranks, folder.path, body) : 1;
    std::fflush(nullptr);
    _exit(code);
  }
  bool failed = false;
  for (size_t ended = 0; ended < pids.size(); ++ended) {
    int status = 0;
    const pid_t pid = wait(&status);
    std::replace(pids.begin(), pids.end(), pid, pid_t{0});
    if (status == 0) continue;
    failed = true;
    for (const pid_t other : pids)
      if (other > 0) kill(other, SIGKILL);
  }
  if (failed) fault(kWhere, "a rank failed");
  return std::max(0.0, (others_busy_s() - busy) / seconds_since(start));
}

}  // namespace

int run_pinned_ranks(int ranks, const std::function<void(const World&)>& body) {
  try {
    const double others = run_ranks(ranks, body);
    std::printf("\nOther processes took %.2f cores.\n", others);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

int core_count() { return static_cast<int>(allowed_cores().size()); }

double slowest_s(Transport& transport, const std::function<void()>& body) {
  barrier(transport);
  const auto start = Clock::now();
  body();
  const double mine = seconds_since(start);
  const std::vector<double> all = transport.exchange({&mine, 1});
  return *std::max_element(all.begin(), all.end());
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<std::vector<double>> take_turns(Transport& transport, const std::vector<Contestant>& contestants,
                                            int rounds) {
  std::vector<std::vector<double>> seconds(contestants.size());
  for (int round = 0; round <= rounds; ++round) {
    for (size_t c = 0; c < contestants.size(); ++c) {
      if (contestants[c].prepare) contestants[c].prepare();
      const double taken = slowest_s(transport, contestants[c].run);
      if (round > 0) seconds[c].push_back(taken);
    }
  }
  return seconds;
}

}  // namespace sherd::bench
