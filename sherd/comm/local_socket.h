// UNIX sockets in the abstract namespace: how processes of one user on one host meet, without a file.
#pragma once

#include <chrono>
#include <string>

#include "sherd/base/unique_fd.h"

namespace sherd {

/// Listens as `name`. Throws FaultError.
UniqueFd listen_abstract(const std::string& name);
/// Connects to whoever of this user listens as `name`; nothing where nobody does.
UniqueFd connect_abstract(const std::string& name);
/// The next connection of a process of this user; others are turned away. Throws FaultError when none comes in time.
UniqueFd accept_same_user(int listener, std::chrono::milliseconds timeout);
/// Until when a read waits.
void set_receive_timeout(int socket, std::chrono::milliseconds timeout);
/// 8 bytes. Throw FaultError, naming `what`.
void send_number(int socket, int64_t number, const char* what);
int64_t receive_number(int socket, const char* what);

}  // namespace sherd
