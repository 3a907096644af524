#include "sherd/comm/control.h"

#include <utility>

namespace sherd {

std::string_view Control::say(std::string_view call) {
  const std::string_view before = std::exchange(standing_->call, call);
  if (before.data() != call.data()) speaker().show_call();
  return before;
}

void Control::abort(std::string_view cause) noexcept {
  standing_->interrupted = true;
  speaker().tell_abort(cause);
}

void Control::recover() {
  speaker().run_recovery();
  standing_->interrupted = false;
  ++standing_->recoveries;
}

void Control::resume() {
  if (standing_->interrupted) recover();
}

void Control::adopt(Control& member) {
  member.standing_ = standing_;
  member.speaker_ = speaker_;
  member.keeper_ = keeper();
}

void Control::take_over(Control& part) {
  speaker_ = this;
  part.standing_ = standing_;
  part.speaker_ = this;
}

}  // namespace sherd
