// A backward of a sharded model, as a machine of four states.
//
//   idle --begin--> running --end--> ending --ended--> idle        any --drop--> dropped --recover--> idle
#pragma once

#include <cstdint>

namespace sherd {

class Backward {
 public:
  /// With what is in memory beside a rank's own rows and states:
  enum class State {
    idle,     // what forwards left unsharded; gradients that are held (.grad) or summed (the store's)
    running,  // besides, the units that autograd has reached, and up to two groups' gradients on their way (Reducer)
    ending,   // the same while what is missing counts as zero and the last groups are reduced; units close
    dropped,  // an exception has ended a forward, a backward or a step: only what other ranks may still read. Nothing
              // begins before all ranks have recovered
  };

  State state() const { return state_; }
  /// True also while it ends.
  bool under_way() const { return state_ == State::running || state_ == State::ending; }
  /// Another number for each.
  int64_t number() const { return number_; }

  // Moves. Each checks where it comes from.
  void begin();
  void end();
  void ended();
  void drop() noexcept { state_ = State::dropped; }
  void recover();

 private:
  void move(State from, State to);

  State state_ = State::idle;
  int64_t number_ = 0;
};

}  // namespace sherd
