#include "sherd/comm/launch_environment.h"

#include <charconv>
#include <cstdlib>
#include <initializer_list>

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr const char* kLaunch = "rendezvous";
constexpr int kMaxWorld = 1 << 20;

const char* text_of(const char* name) { return std::getenv(name); }

bool all_set(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (text_of(name) == nullptr) return false;
  return true;
}

int integer(const char* name, int low, int high) {
  const std::string_view text(text_of(name));
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    config_error(kLaunch, "got {}={}, expected an integer from {} to {}; try torchrun or --ranks", name, text, low,
                 high);
  return value;
}

LaunchedAs place(const char* rank, const char* size, const char* local_rank) {
  LaunchedAs result;
  result.size = integer(size, 1, kMaxWorld);
  result.rank = integer(rank, 0, result.size - 1);
  result.local_rank = text_of(local_rank) != nullptr ? integer(local_rank, 0, kMaxWorld) : result.rank;
  return result;
}

void take_master(LaunchedAs& result) {
  result.address = text_of("MASTER_ADDR");
  result.port = integer("MASTER_PORT", 1, 65535);
}

LaunchedAs from_mpirun() {
  LaunchedAs result = place("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK");
  if (all_set({"MASTER_ADDR", "MASTER_PORT"})) {
    take_master(result);
    return result;
  }
  const bool one_host = text_of("OMPI_COMM_WORLD_LOCAL_SIZE") != nullptr &&
                        integer("OMPI_COMM_WORLD_LOCAL_SIZE", 1, kMaxWorld) == result.size;
  if (!one_host || text_of("PMIX_NAMESPACE") == nullptr)
    config_error(kLaunch,
                 "got mpirun over several hosts without MASTER_ADDR and MASTER_PORT, expected both; try mpirun "
                 "-x MASTER_ADDR=<host of rank 0> -x MASTER_PORT=29500");
  result.job = fmt::format("mpirun-{}", text_of("PMIX_NAMESPACE"));
  return result;
}

LaunchedAs from_srun() {
  LaunchedAs result = place("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID");
  if (all_set({"MASTER_ADDR", "MASTER_PORT"})) {
    take_master(result);
    return result;
  }
  const char* list = text_of("SLURM_STEP_NODELIST") != nullptr ? "SLURM_STEP_NODELIST" : "SLURM_NODELIST";
  if (!all_set({list, "SLURM_JOB_ID"}))
    config_error(kLaunch, "got srun without {} or SLURM_JOB_ID, expected both; try MASTER_ADDR and MASTER_PORT", list);
  result.address = text_of("MASTER_ADDR") != nullptr ? text_of("MASTER_ADDR") : first_slurm_host(text_of(list));
  // Below the ports that the kernel gives to outgoing connections.
  constexpr int kFirstPort = 15000, kPorts = 15000;
  result.port =
      text_of("MASTER_PORT") != nullptr
          ? integer("MASTER_PORT", 1, 65535)
          : kFirstPort + (integer("SLURM_JOB_ID", 0, INT32_MAX) + integer("SLURM_STEP_ID", 0, INT32_MAX) % 97) % kPorts;
  return result;
}

}  // namespace

std::string first_slurm_host(std::string_view list) {
  const auto malformed = [&]() {
    config_error(kLaunch, "got the SLURM host list '{}', expected something like node[1-4]; try MASTER_ADDR", list);
  };
  // "a[01-03,7]b,c": the first name, with the first number of each bracket.
  std::string host;
  for (size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] == ']') malformed();
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const size_t close = list.find(']', i);
    if (close == std::string_view::npos) malformed();
    const std::string_view inside = list.substr(i + 1, close - i - 1);
    const std::string_view first = inside.substr(0, inside.find_first_of("-,"));
    if (first.empty()) malformed();
    host += first;
    i = close;
  }
  if (host.empty()) malformed();
  return host;
}

std::optional<LaunchedAs> launched_by_environment() {
  if (all_set({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})) {
    LaunchedAs result = place("RANK", "WORLD_SIZE", "LOCAL_RANK");
    take_master(result);
    return result;
  }
  if (all_set({"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"})) return from_mpirun();
  // A batch script has SLURM_PROCID too; only the tasks of srun have a step.
  if (all_set({"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"})) return from_srun();
  return std::nullopt;
}

}  // namespace sherd
