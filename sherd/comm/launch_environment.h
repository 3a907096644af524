// This process's place among the ranks, as the environment of whatever started it says.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sherd {

struct LaunchedAs {
  int rank = 0, size = 1, local_rank = 0;
  /// Where rank 0 serves the rendezvous. Empty under mpirun on one host: the ranks then find each other by `job`.
  std::string address;
  int port = 0;
  std::string job;  // a name that only this job has on this host
};

/// Reads, in this order: torchrun's and our own launcher's (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT), mpirun's
/// (OMPI_COMM_WORLD_*; over several hosts also MASTER_ADDR and MASTER_PORT) and srun's (SLURM_* of a step: the first
/// host of the list and a port from the job's number, or MASTER_ADDR and MASTER_PORT). Nothing where nobody shows.
/// Throws ConfigError for a malformed one.
std::optional<LaunchedAs> launched_by_environment();

/// The first host of a SLURM list: "node7" of "node[7-9,12]", "a" of "a,b". Throws ConfigError.
std::string first_slurm_host(std::string_view list);

}  // namespace sherd
