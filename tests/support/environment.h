// The environment of a launcher, for one test.
#pragma once

#include <array>
#include <cstdlib>
#include <map>
#include <string>

namespace sherd::testing {

/// Sets exactly these of the variables that a rendezvous reads, and puts back what was there.
class LaunchVariables {
 public:
  explicit LaunchVariables(const std::map<std::string, std::string>& variables) {
    for (const char* name : kNames) {
      if (const char* value = std::getenv(name)) saved_[name] = value;
      unsetenv(name);
    }
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  }
  LaunchVariables(const LaunchVariables&) = delete;
  LaunchVariables& operator=(const LaunchVariables&) = delete;
  ~LaunchVariables() {
    for (const char* name : kNames) unsetenv(name);
    for (const auto& [name, value] : saved_) setenv(name.c_str(), value.c_str(), 1);
  }

 private:
  static constexpr std::array<const char*, 20> kNames = {"RANK",
                                                         "WORLD_SIZE",
                                                         "LOCAL_RANK",
                                                         "MASTER_ADDR",
                                                         "MASTER_PORT",
                                                         "TORCHELASTIC_USE_AGENT_STORE",
                                                         "TORCHELASTIC_RESTART_COUNT",
                                                         "SHERD_MASTER_FD",
                                                         "OMPI_COMM_WORLD_RANK",
                                                         "OMPI_COMM_WORLD_SIZE",
                                                         "OMPI_COMM_WORLD_LOCAL_RANK",
                                                         "OMPI_COMM_WORLD_LOCAL_SIZE",
                                                         "PMIX_NAMESPACE",
                                                         "SLURM_PROCID",
                                                         "SLURM_NTASKS",
                                                         "SLURM_LOCALID",
                                                         "SLURM_NODELIST",
                                                         "SLURM_STEP_NODELIST",
                                                         "SLURM_JOB_ID",
                                                         "SLURM_STEP_ID"};
  std::map<std::string, std::string> saved_;
};

}  // namespace sherd::testing
