#include "sherd/shard/backward.h"

#include "sherd/base/error.h"

namespace sherd {

void Backward::move(State from, State to) {
  SHERD_CHECK(state_ == from);
  state_ = to;
}

void Backward::begin() {
  move(State::idle, State::running);
  ++number_;
}

void Backward::end() { move(State::running, State::ending); }

void Backward::ended() { move(State::ending, State::idle); }

void Backward::recover() { move(State::dropped, State::idle); }

}  // namespace sherd
