// Ranks as threads of one process, with private buffers: for tests.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "sherd/comm/transport.h"

namespace sherd {

/// What the threads of one group share. Make one, and a transport a thread from it.
class ThreadGroup {
 public:
  explicit ThreadGroup(int size, std::chrono::milliseconds timeout = std::chrono::seconds(60));
  ~ThreadGroup();
  std::unique_ptr<Transport> transport(int rank);

 private:
  struct Shared;
  class ThreadTransport;
  std::shared_ptr<Shared> shared_;
};

}  // namespace sherd
