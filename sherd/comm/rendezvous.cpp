#include "sherd/comm/rendezvous.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <sys/socket.h>

#include <netinet/in.h>

#include <charconv>
#include <cstdlib>
#include <thread>

#include "sherd/base/error.h"
#include "sherd/comm/launch_environment.h"
#include "sherd/comm/local_socket.h"

namespace sherd {
namespace {

constexpr const char* kMeeting = "rendezvous";

/// A listening socket on a free port of the loopback interface.
UniqueFd listen_on_loopback(int& port) {
  UniqueFd socket_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (!socket_fd || bind(socket_fd.get(), generic, size) != 0 || listen(socket_fd.get(), SOMAXCONN) != 0 ||
      getsockname(socket_fd.get(), generic, &size) != 0)
    fault_errno(kMeeting, "no port on 127.0.0.1");
  port = ntohs(address.sin_port);
  return socket_fd;
}

/// Ranks of one host: rank 0 takes a free port and tells the others over a socket with the job's name. Returns its
/// listening socket.
UniqueFd agree_on_port(LaunchedAs& place, std::chrono::milliseconds timeout) {
  const std::string name = "sherd-" + place.job;
  place.address = "127.0.0.1";
  if (place.rank == 0) {
    UniqueFd listening = listen_on_loopback(place.port);
    const UniqueFd by_name = listen_abstract(name);
    for (int told = 1; told < place.size; ++told)
      send_number(accept_same_user(by_name.get(), timeout).get(), place.port, "the port of the rendezvous");
    return listening;
  }
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  UniqueFd to_root = connect_abstract(name);
  while (!to_root) {
    if (std::chrono::steady_clock::now() > deadline)
      fault(kMeeting, "rank {} did not find rank 0 on this host", place.rank);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    to_root = connect_abstract(name);
  }
  set_receive_timeout(to_root.get(), timeout);
  place.port = static_cast<int>(receive_number(to_root.get(), "the port of the rendezvous"));
  return {};
}

int inherited_socket() {
  const char* text = std::getenv("SHERD_MASTER_FD");
  if (text == nullptr) return -1;
  const std::string_view view(text);
  int fd = -1;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), fd);
  if (error != std::errc() || end != view.data() + view.size() || fd < 0)
    config_error(kMeeting, "got SHERD_MASTER_FD={}, expected an integer from 0; try without it", view);
  return fd;
}

}  // namespace

World with_fresh_store(const World& world, const std::string& purpose) {
  World result = world;
  const int64_t calls = world.store->add(fmt::format("sherd/{}/calls/{}", purpose, world.rank), 1);
  result.store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("sherd/{}/{}", purpose, calls), world.store);
  return result;
}

std::vector<std::string> gather_texts(const World& world, const std::string& name, const std::string& mine) {
  const auto key = [&](int rank) { return fmt::format("{}/{}", name, rank); };
  const std::string all_key = name + "/all";
  std::string all;  // each text behind its size
  if (world.rank != 0) {
    world.store->set(key(world.rank), mine);
    all = world.store->get_to_str(all_key);
  } else {
    for (int r = 0; r < world.size; ++r) {
      const std::string text = r == 0 ? mine : world.store->get_to_str(key(r));
      all += fmt::format("{} {}", text.size(), text);
    }
    world.store->set(all_key, all);
  }
  std::vector<std::string> texts;
  for (size_t at = 0; static_cast<int>(texts.size()) < world.size;) {
    const size_t space = all.find(' ', at), size = std::stoul(all.substr(at, space - at));
    texts.push_back(all.substr(space + 1, size));
    at = space + 1 + size;
  }
  return texts;
}

World join_world(std::chrono::milliseconds timeout) {
  World world;
  world.timeout = timeout;
  auto place = launched_by_environment();
  if (!place) return world;
  world.rank = place->rank;
  world.size = place->size;
  world.local_rank = place->local_rank;
  if (world.size == 1) return world;

  // torchrun's agent may already serve the store on this port, for one attempt after the other.
  const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  const char* attempt = std::getenv("TORCHELASTIC_RESTART_COUNT");
  c10d::TCPStoreOptions options;
  options.isServer = world.rank == 0 && (agent == nullptr || std::string_view(agent) != "True");
  options.numWorkers = world.size;
  options.timeout = timeout;
  if (options.isServer && inherited_socket() >= 0) options.masterListenFd = inherited_socket();
  if (!place->job.empty()) {
    const UniqueFd listening = agree_on_port(*place, timeout);
    if (listening) options.masterListenFd = dup(listening.get());  // the store closes it
  }
  options.port = static_cast<uint16_t>(place->port);
  try {
    world.store = c10::make_intrusive<c10d::TCPStore>(place->address, options);
  } catch (const std::exception& error) {
    fault(kMeeting, "rank {} of {} could not meet the others at {}:{}: {}", world.rank, world.size, place->address,
          place->port, first_line(error.what()));
  }
  if (attempt != nullptr)
    world.store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("sherd/attempt/{}", attempt), world.store);
  return world;
}

}  // namespace sherd
