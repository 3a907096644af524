// Brings gradients from autograd into the store, group by group, in one order on all ranks.
//
// [Note: Rounds] A backward that reduces is one round of every group with a parameter that takes part (Role). As a
// parameter's gradient is complete, it is copied into the group's slot and dropped; a group whose gradients are all
// there is contributed, in the fixed order (the reverse of the units' order in the model, units with children last):
// gradients of a later group wait in .grad for their turn. At most kInFlight groups are under way. At the end of
// backward what has no gradient counts as zero. A gradient that comes after its group was contributed (re-entrant
// recompute of a unit that is used twice) makes one more round at the end.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <vector>

#include "sherd/shard/param_group.h"
#include "sherd/shard/store.h"

namespace sherd {

/// No limit to the rounds of a step.
inline constexpr int kAnyRounds = 1 << 30;

/// Groups that are contributed and not yet reduced: what bounds the memory of communication.
inline constexpr size_t kInFlight = 2;

/// What a backward does with the gradients.
enum class Gradients {
  reduce,             // over all ranks
  reduce_shard_axis,  // over this replica's (hsdp), for a later backward that reduces over all; else the same as reduce
  hold,               // nothing: they stay in .grad for a later backward that reduces
};

class Reducer {
 public:
  /// `order`: the groups' indices in the order of contribution, of which those that take no part are left out.
  Reducer(Store& store, std::vector<ParamGroup*> groups, std::vector<size_t> order, Spread gradients);

  /// Between backwards: groups or their parameters have other roles.
  void follow_roles();
  /// How many rounds a step may have; one more is an error.
  void allow_rounds(int most) { most_rounds_ = most; }

  /// `hold`: following backwards leave this group's gradients in .grad, whatever the others do; `reduce`: no more.
  void set_gradients(size_t g, Gradients gradients) { entries_[g].gradients = gradients; }
  bool holds(size_t g) const { return entries_[g].gradients == Gradients::hold; }

  /// A backward begins.
  void begin(Gradients gradients);
  /// Parameter p of group g has its gradient of this backward in .grad. True when it was the group's last.
  bool accumulated(size_t g, size_t p);
  /// All gradients of this backward are there: contributes and reduces the rest (nothing if they are held).
  void finish();
  /// The step is over: the next round starts new sums; of all groups, or of one.
  void start_window();
  void start_window(size_t g) { entries_[g].rounds = 0; }
  /// What is in the store's gradient(g) counts, whoever put it there: the next round adds to it.
  void keep_window(size_t g) { entries_[g].rounds = std::max(entries_[g].rounds, 1); }
  /// Drops the round under way and what this window has summed, with a store that does the same.
  void abandon() noexcept;

  /// Rounds of group g that are reduced since the window began.
  int rounds(size_t g) const { return entries_[g].rounds; }
  /// Whether what was reduced since the last backward that reduced over all had a gradient of parameter p.
  bool given(size_t g, size_t p) const { return entries_[g].given[p] != 0; }
  /// Nothing is missing of group g's gradients of this backward.
  bool complete(size_t g) const { return entries_[g].complete; }
  /// The same also between backwards: group g has none.
  bool awaits_none(size_t g) const { return entries_[g].awaited == 0; }

 private:
  struct Entry {
    at::Tensor slot;              // defined while open
    std::vector<char> deposited;  // parameters whose gradients lie in the slot
    std::vector<char> seen;       // parameters whose gradients this backward has made
    std::vector<char> given;      // parameters that were deposited since all was reduced last
    size_t seen_count = 0, awaited = 0;
    bool complete = false;     // all that are awaited are seen
    bool contributed = false;  // in this backward
    int rounds = 0;            // reduced in this window
    Gradients gradients = Gradients::reduce;
  };

  bool may_open(size_t g) const;
  void open(size_t g);
  void deposit(size_t g, size_t p);
  void deposit_waiting(size_t g);
  void contribute(size_t g);
  void advance();
  bool reduce_oldest(Patience patience);
  bool has_waiting(size_t g) const;

  Store& store_;
  std::vector<ParamGroup*> groups_;
  std::vector<size_t> all_in_order_, order_;
  Spread spread_;
  int most_rounds_ = kAnyRounds;
  Gradients gradients_ = Gradients::reduce;
  std::vector<Entry> entries_;
  size_t next_ = 0;             // position in order_ of the next group to contribute
  std::deque<size_t> pending_;  // contributed, not yet reduced, oldest first
};

}  // namespace sherd
