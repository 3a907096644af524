#include "sherd/comm/collectives.h"

namespace sherd {

Pending& Pending::operator=(Pending&& other) noexcept {
  std::swap(wait_, other.wait_);
  return *this;
}

Pending::~Pending() {
  try {
    wait();
  } catch (...) {  // The error belongs to whoever waits; nobody did.
  }
}

void Pending::wait() {
  if (const auto wait = std::exchange(wait_, nullptr)) wait();
}

}  // namespace sherd
