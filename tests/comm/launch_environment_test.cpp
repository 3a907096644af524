#include "sherd/comm/launch_environment.h"

#include <gtest/gtest.h>

#include "sherd/base/error.h"
#include "tests/support/environment.h"
#include "tests/support/processes.h"

namespace sherd {
namespace {

using testing::LaunchVariables;
using Variables = std::map<std::string, std::string>;

const Variables kTorchrun = {{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1000"}};
const Variables kMpirun = {{"OMPI_COMM_WORLD_RANK", "2"},
                           {"OMPI_COMM_WORLD_SIZE", "3"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "3"},
                           {"PMIX_NAMESPACE", "1700855809"}};
const Variables kSrun = {{"SLURM_PROCID", "5"},  {"SLURM_NTASKS", "8"},          {"SLURM_LOCALID", "1"},
                         {"SLURM_STEP_ID", "0"}, {"SLURM_NODELIST", "n[07-10]"}, {"SLURM_JOB_ID", "4711"}};

Variables with(Variables variables, const Variables& changes) {
  for (const auto& [name, value] : changes) variables[name] = value;
  return variables;
}

Variables without(Variables variables, const char* name) {
  variables.erase(name);
  return variables;
}

std::string mistake_in(const Variables& variables) {
  const LaunchVariables environment(variables);
  try {
    launched_by_environment();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no mistake";
}

LaunchedAs read(const Variables& variables) {
  const LaunchVariables environment(variables);
  return launched_by_environment().value();
}

TEST(LaunchEnvironment, MpirunOnOneHostNeedsNothingElse) {
  const LaunchedAs place = read(kMpirun);
  EXPECT_EQ(place.rank, 2);
  EXPECT_EQ(place.size, 3);
  EXPECT_EQ(place.local_rank, 2);
  EXPECT_EQ(place.job, "mpirun-1700855809");
  EXPECT_EQ(place.address, "");
}

TEST(LaunchEnvironment, MpirunOverHostsNeedsAMaster) {
  const auto two_hosts = with(kMpirun, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}});
  EXPECT_NE(mistake_in(two_hosts).find("try mpirun -x MASTER_ADDR=<host of rank 0> -x MASTER_PORT="),
            std::string::npos);
  const LaunchedAs place = read(with(two_hosts, {{"MASTER_ADDR", "there"}, {"MASTER_PORT", "77"}}));
  EXPECT_EQ(place.address, "there");
  EXPECT_EQ(place.port, 77);
  EXPECT_EQ(place.job, "");
  EXPECT_EQ(place.local_rank, 0);
}

TEST(LaunchEnvironment, SrunTakesTheFirstHostAndAPortFromTheJob) {
  const LaunchedAs place = read(kSrun);
  EXPECT_EQ(place.rank, 5);
  EXPECT_EQ(place.size, 8);
  EXPECT_EQ(place.local_rank, 1);
  EXPECT_EQ(place.address, "n07");
  EXPECT_EQ(place.port, 15000 + 4711);
  EXPECT_NE(read(with(kSrun, {{"SLURM_STEP_ID", "1"}})).port, place.port) << "steps run side by side";
  EXPECT_EQ(read(with(kSrun, {{"SLURM_STEP_NODELIST", "m3"}})).address, "m3") << "a step on some of the job's hosts";
  EXPECT_EQ(read(with(kSrun, {{"MASTER_PORT", "99"}})).port, 99);
  EXPECT_EQ(read(with(kSrun, {{"MASTER_ADDR", "x"}})).address, "x");
  for (const char* job : {"0", "15000", "2147483647"}) {
    const int port = read(with(kSrun, {{"SLURM_JOB_ID", job}})).port;
    EXPECT_TRUE(port >= 15000 && port < 30000) << port;
  }
}

TEST(LaunchEnvironment, ABatchScriptIsNoTaskOfSrun) {
  const LaunchVariables environment(without(kSrun, "SLURM_STEP_ID"));
  EXPECT_FALSE(launched_by_environment().has_value());
}

TEST(LaunchEnvironment, TorchrunComesBeforeMpirunBeforeSrun) {
  Variables all = with(kSrun, kMpirun);
  EXPECT_EQ(read(all).size, 3);
  EXPECT_EQ(read(with(all, kTorchrun)).size, 4);
}

TEST(LaunchEnvironment, WhatIsMalformedIsNamed) {
  EXPECT_NE(mistake_in(with(kMpirun, {{"OMPI_COMM_WORLD_RANK", "3"}})).find("got OMPI_COMM_WORLD_RANK=3, expected"),
            std::string::npos);
  EXPECT_NE(mistake_in(with(kSrun, {{"SLURM_NTASKS", "x"}})).find("got SLURM_NTASKS=x"), std::string::npos);
  EXPECT_NE(mistake_in(without(kSrun, "SLURM_NODELIST")).find("got srun without SLURM_NODELIST or SLURM_JOB_ID"),
            std::string::npos);
  EXPECT_NE(mistake_in(without(kSrun, "SLURM_JOB_ID")).find("or SLURM_JOB_ID"), std::string::npos);
}

TEST(LaunchEnvironment, FirstSlurmHost) {
  const std::map<std::string, std::string> lists = {{"a", "a"},
                                                    {"a,b", "a"},
                                                    {"n[1-3]", "n1"},
                                                    {"n[007-010,12],m1", "n007"},
                                                    {"n[5,7]", "n5"},
                                                    {"rack[1-2]n[3-4]", "rack1n3"},
                                                    {"n[1-2].cluster,x", "n1.cluster"}};
  for (const auto& [list, host] : lists) EXPECT_EQ(first_slurm_host(list), host) << list;
  for (const char* list : {"", ",", "n[", "n[]", "n]", "n[1", "n[-2]"})
    EXPECT_THROW(first_slurm_host(list), ConfigError) << list;
}

// Real processes meet by what the launchers say, and nothing else.
void expect_that_they_meet(const std::function<Variables(int, int)>& variables_of) {
  const auto statuses = testing::run_processes(3, [&](const World& mine) {
    const LaunchVariables environment(variables_of(mine.rank, 3));
    const World world = join_world(std::chrono::seconds(20));
    EXPECT_EQ(world.rank, mine.rank);
    EXPECT_EQ(world.size, 3);
    world.store->set(fmt::format("here {}", world.rank), "1");
    world.store->wait({"here 0", "here 1", "here 2"});
    // Rank 0, who serves the store, stays until the others have said goodbye.
    if (mine.rank != 0) world.store->set(fmt::format("bye {}", mine.rank), "1");
    if (mine.rank == 0) world.store->wait({"bye 1", "bye 2"});
  });
  for (const int status : statuses) EXPECT_EQ(status, 0);
}

TEST(LaunchEnvironment, RanksOfMpirunMeetOnOneHost) {
  expect_that_they_meet([job = std::to_string(getpid())](int rank, int size) {
    return Variables{{"OMPI_COMM_WORLD_RANK", std::to_string(rank)},
                     {"OMPI_COMM_WORLD_SIZE", std::to_string(size)},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", std::to_string(size)},
                     {"PMIX_NAMESPACE", job}};
  });
}

TEST(LaunchEnvironment, TasksOfSrunMeet) {
  expect_that_they_meet([job = std::to_string(getpid())](int rank, int size) {
    return Variables{{"SLURM_PROCID", std::to_string(rank)},
                     {"SLURM_NTASKS", std::to_string(size)},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_STEP_NODELIST", "localhost"},
                     {"SLURM_JOB_ID", job}};
  });
}

TEST(LaunchEnvironment, WhoFindsNoRank0SaysSo) {
  const LaunchVariables environment(with(kMpirun, {{"PMIX_NAMESPACE", std::to_string(getpid()) + "-nobody"}}));
  try {
    join_world(std::chrono::milliseconds(100));
    FAIL() << "met somebody";
  } catch (const FaultError& error) {
    EXPECT_STREQ(error.what(), "[rendezvous] rank 2 did not find rank 0 on this host");
  }
}

}  // namespace
}  // namespace sherd
