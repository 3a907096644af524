#include "cli/rank_cores.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <tuple>

namespace sherd {
namespace {

/// A number below /sys/devices/system/cpu/cpuN/topology, 0 where the kernel does not tell.
int topology(int cpu, const char* what) {
  int value = 0;
  std::ifstream(fmt::format("/sys/devices/system/cpu/cpu{}/topology/{}", cpu, what)) >> value;
  return value;
}

}  // namespace

std::vector<int> allowed_cpus() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::vector<std::tuple<int, int, int>> order;  // package, core, cpu
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) {
        order.emplace_back(topology(cpu, "physical_package_id"), topology(cpu, "core_id"), cpu);
      }
    }
  }
  std::sort(order.begin(), order.end());
  std::vector<int> cpus;
  for (const auto& place : order) cpus.push_back(std::get<2>(place));
  return cpus;
}

std::vector<int> share_of_cpus(const std::vector<int>& cpus, int rank, int ranks) {
  const auto count = static_cast<std::ptrdiff_t>(cpus.size());
  if (count < ranks) return {};
  return {cpus.begin() + count * rank / ranks, cpus.begin() + count * (rank + 1) / ranks};
}

}  // namespace sherd
