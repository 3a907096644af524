#include "sherd/comm/local_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr const char* kSocketWhere = "host";
constexpr int kBacklog = 256;

// Again where a signal came in between.
template <class Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

sockaddr_un abstract_address(const std::string& name, socklen_t& length) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (name.size() >= sizeof(address.sun_path)) fault(kSocketWhere, "the name '{}' is too long for a socket", name);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

// Every user of the machine can read the names of abstract sockets, connect, and take a name first.
bool of_this_user(int socket) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

}  // namespace

UniqueFd listen_abstract(const std::string& name) {
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  socklen_t length = 0;
  const sockaddr_un address = abstract_address(name, length);
  if (!socket_fd || bind(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      listen(socket_fd.get(), kBacklog) != 0)
    fault_errno(kSocketWhere, "cannot listen on an abstract UNIX socket");
  return socket_fd;
}

UniqueFd connect_abstract(const std::string& name) {
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket_fd) fault_errno(kSocketWhere, "cannot make a UNIX socket");
  socklen_t length = 0;
  const sockaddr_un address = abstract_address(name, length);
  const int done =
      uninterrupted([&] { return ::connect(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), length); });
  if (done != 0 || !of_this_user(socket_fd.get())) return {};
  return socket_fd;
}

UniqueFd accept_same_user(int listener, std::chrono::milliseconds timeout) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + timeout;
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd polled = {listener, POLLIN, 0};
    if (left < 0)
      fault(kSocketWhere, "a peer did not connect within {} s", static_cast<double>(timeout.count()) / 1000);
    if (uninterrupted([&] { return poll(&polled, 1, static_cast<int>(left)); }) == 0) continue;
    UniqueFd peer(uninterrupted([&] { return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC); }));
    if (!peer && errno != ECONNABORTED) fault_errno(kSocketWhere, "cannot accept a peer");
    if (peer && of_this_user(peer.get())) return peer;
  }
}

void set_receive_timeout(int socket, std::chrono::milliseconds timeout) {
  timeval value = {};
  value.tv_sec = timeout.count() / 1000;
  value.tv_usec = timeout.count() % 1000 * 1000;
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value));
}

void send_number(int socket, int64_t number, const char* what) {
  if (uninterrupted([&] { return send(socket, &number, sizeof(number), MSG_NOSIGNAL); }) !=
      static_cast<ssize_t>(sizeof(number)))
    fault_errno(kSocketWhere, fmt::format("cannot send {}", what));
}

int64_t receive_number(int socket, const char* what) {
  int64_t number = 0;
  const auto bytes = uninterrupted([&] { return recv(socket, &number, sizeof(number), MSG_WAITALL); });
  if (bytes == 0) fault(kSocketWhere, "a peer ended before it sent {}", what);
  if (bytes != static_cast<ssize_t>(sizeof(number))) fault_errno(kSocketWhere, fmt::format("cannot receive {}", what));
  return number;
}

}  // namespace sherd
