#include "sherd/comm/rendezvous.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdlib>

#include "sherd/base/error.h"
#include "sherd/base/unique_fd.h"
#include "sherd/comm/launch_environment.h"
#include "tests/support/environment.h"
#include "tests/support/processes.h"

namespace sherd {
namespace {

using std::chrono::milliseconds;

using Environment = testing::LaunchVariables;

std::map<std::string, std::string> two_ranks() {
  return {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "29999"}};
}

std::string config_error_of(const std::map<std::string, std::string>& variables) {
  const Environment environment(variables);
  try {
    join_world(milliseconds(200));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

/// A listening socket on a port that the kernel chose. The peers may connect before anybody accepts.
UniqueFd listen_anywhere(int& port) {
  UniqueFd listener(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
  EXPECT_EQ(listen(listener.get(), 16), 0);
  EXPECT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  port = ntohs(address.sin_port);
  return listener;
}

TEST(Rendezvous, WithoutTheFourVariablesItIsAlone) {
  for (const char* missing : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    auto variables = two_ranks();
    variables.erase(missing);
    const Environment environment(variables);
    EXPECT_FALSE(launched_by_environment().has_value());
    const World world = join_world(milliseconds(200));
    EXPECT_EQ(world.rank, 0);
    EXPECT_EQ(world.size, 1);
    EXPECT_FALSE(world.store);
  }
}

TEST(Rendezvous, AWorldOfOneNeedsNoStore) {
  auto variables = two_ranks();
  variables["RANK"] = "0";
  variables["WORLD_SIZE"] = "1";
  const Environment environment(variables);
  EXPECT_TRUE(launched_by_environment().has_value());
  EXPECT_FALSE(join_world(milliseconds(200)).store);
}

TEST(Rendezvous, AMalformedVariableIsNamedWithWhatItMayBe) {
  struct Case {
    const char *name, *value, *expected;
  };
  const std::vector<Case> cases = {
      {"WORLD_SIZE", "0", "1 to 1048576"},
      {"WORLD_SIZE", "two", "1 to 1048576"},
      {"WORLD_SIZE", "", "1 to 1048576"},
      {"WORLD_SIZE", "99999999999999", "1 to 1048576"},
      {"RANK", "2", "0 to 1"},
      {"RANK", "-1", "0 to 1"},
      {"RANK", "1x", "0 to 1"},
      {"RANK", " 1", "0 to 1"},
      {"LOCAL_RANK", "-1", "0 to 1048576"},
      {"MASTER_PORT", "0", "1 to 65535"},
      {"MASTER_PORT", "65536", "1 to 65535"},
      {"MASTER_PORT", "http", "1 to 65535"},
  };
  for (const auto& [name, value, expected] : cases) {
    auto variables = two_ranks();
    variables[name] = value;
    EXPECT_EQ(config_error_of(variables),
              fmt::format("[rendezvous] got {}={}, expected an integer from {}; try torchrun or --ranks", name, value,
                          expected));
  }
  auto variables = two_ranks();
  variables["RANK"] = "0";
  variables["SHERD_MASTER_FD"] = "-3";
  EXPECT_NE(config_error_of(variables).find("got SHERD_MASTER_FD=-3, expected an integer from 0"), std::string::npos);
}

TEST(Rendezvous, AMissingPeerIsAFaultThatSaysWhoWaitedWhere) {
  // Nobody listens on the port of a socket that is bound and closed again; rank 0 waits for a rank 1 that never comes.
  int port = 0;
  listen_anywhere(port);
  for (const char* rank : {"0", "1"}) {
    auto variables = two_ranks();
    variables["RANK"] = rank;
    variables["MASTER_PORT"] = std::to_string(port);
    const Environment environment(variables);
    try {
      join_world(milliseconds(300));
      FAIL() << "rank " << rank << " met somebody";
    } catch (const FaultError& error) {
      const std::string start =
          fmt::format("[rendezvous] rank {} of 2 could not meet the others at 127.0.0.1:{}: ", rank, port);
      EXPECT_EQ(std::string(error.what()).substr(0, start.size()), start);
    }
  }
}

TEST(Rendezvous, ProcessesMeetOverAnInheritedSocket) {
  int port = 0;
  const UniqueFd listener = listen_anywhere(port);
  const auto statuses = testing::run_processes(3, [&](const World& mine) {
    const Environment environment({{"RANK", std::to_string(mine.rank)},
                                   {"WORLD_SIZE", "3"},
                                   {"LOCAL_RANK", std::to_string(mine.rank + 4)},
                                   {"MASTER_ADDR", "127.0.0.1"},
                                   {"MASTER_PORT", std::to_string(port)},
                                   {"SHERD_MASTER_FD", std::to_string(listener.get())}});
    const World world = join_world(std::chrono::seconds(20));
    EXPECT_EQ(world.rank, mine.rank);
    EXPECT_EQ(world.size, 3);
    EXPECT_EQ(world.local_rank, mine.rank + 4);
    // The store has no barrier at its end: rank 0, who serves it, stays until the others have said goodbye.
    EXPECT_LE(world.store->add("met", 1), 3);
    if (mine.rank != 0) {
      world.store->set(fmt::format("bye {}", mine.rank), "1");
    } else {
      world.store->wait({"bye 1", "bye 2"});
      EXPECT_EQ(world.store->add("met", 0), 3);
    }
  });
  for (const int status : statuses) EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace sherd
