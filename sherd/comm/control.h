// What ranks tell each other beside data: messages, which call they are in, aborts and recoveries.
//
// exchange() and recover() are collective: all ranks make the same calls in the same order. Every wait has a time-out
// and notices a dead or aborted peer: it throws FaultError naming the rank and the cause. Nothing here waits for a
// device or needs one. A Control belongs to one thread of one rank, and to a *family*: its subgroups, and what it is
// itself a part of. An abort reaches all waits of a family, and a recovery is that of all.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "sherd/comm/messages.h"

namespace sherd {

class Control : public Messages {
 public:
  using Messages::Messages;

  /// The call that this rank is in from here on, for errors of peers that wait for it: "full_state_dict", "" outside.
  /// It must stay valid; returns the one before. A few nanoseconds.
  std::string_view say(std::string_view call);
  std::string_view call() const { return standing_->call; }
  /// The same text for as long as the family lives.
  std::string_view intern(const std::string& text) { return *standing_->texts.insert(text).first; }
  /// This rank will make no more calls: a peer that waits for it hears that it has finished.
  virtual void finish() noexcept {}

  /// Tells the peers that this rank gives up, and why. Their waits throw with that cause, at the latest in 100 ms.
  /// Where several ranks give up, all hear of the first.
  void abort(std::string_view cause) noexcept;
  /// What a wait would throw now because a rank has given up. Waits for nobody, but may ask a store.
  virtual std::optional<std::string> heard() { return std::nullopt; }

  /// Makes the family work again after an abort, with nothing under way: what was started before throws in wait().
  /// Collective over the ranks of the whole family, whether or not they have met the abort yet; with nothing aborted it
  /// is a barrier. Throws FaultError on all ranks when one is dead or does not come; then the family is of no more use.
  void recover();
  /// For whatever begins to use the ranks: recover() where this rank has given up or heard that another has, else
  /// nothing.
  void resume();
  /// How often the family has recovered: what was under way before is gone.
  uint64_t recoveries() const { return standing_->recoveries; }

 protected:
  /// say() was called.
  virtual void show_call() noexcept {}
  virtual void tell_abort(std::string_view cause) noexcept = 0;
  virtual void run_recovery() = 0;
  /// A peer has given up.
  void heard_abort() { standing_->interrupted = true; }

  /// Makes `member` one of this one's family.
  void adopt(Control& member);
  /// The same for a part of this one, which from then on aborts and recovers for the family, whoever is asked to.
  void take_over(Control& part);
  /// What lives as long as any member does; null where each lives by itself.
  virtual std::shared_ptr<void> keeper() { return keeper_; }
  // Of a part, for that.
  static void tell_abort(Control& part, std::string_view cause) noexcept { part.tell_abort(cause); }
  static void run_recovery(Control& part) { part.run_recovery(); }
  static void show_call(Control& part) noexcept { part.show_call(); }

 private:
  /// What a family shares on one rank.
  struct Standing {
    bool interrupted = false;  // this rank has given up or heard of it, since the last recovery
    uint64_t recoveries = 0;
    std::string_view call;
    std::set<std::string> texts;
  };
  Control& speaker() { return speaker_ != nullptr ? *speaker_ : *this; }

  std::shared_ptr<Standing> standing_ = std::make_shared<Standing>();
  Control* speaker_ = nullptr;  // who aborts and recovers for the family; null: each member can
  std::shared_ptr<void> keeper_;
};

}  // namespace sherd
