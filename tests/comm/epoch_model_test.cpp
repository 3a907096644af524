// [Note: Epochs] of group_epochs.h, all interleavings of a small model of it: every order in which ranks can do their
// steps, with any rank dying or giving up anywhere. The steps are those of SharedStore (shard/shared_store.cpp) and
// HostSegment, in its words. To show that each wait is needed, and that the model would notice, each is dropped in
// turn.
#include <gtest/gtest.h>

#include <optional>
#include <unordered_set>
#include <vector>

#include "sherd/base/error.h"

namespace sherd {
namespace {

/// What can be taken out of the protocol.
enum class Part {
  none,
  wait_for_published,    // unshard: all ranks' rows are of this version
  wait_for_own_round,    // open_slot: all ranks have reduced this group's last round
  wait_for_slot_user,    // open_slot: all ranks have reduced what lies in the ring slot
  wait_for_contributed,  // reduce: all ranks' gradients lie ready
  wait_for_backward,     // the exchange between backward and update
  looking_for_the_dead,  // in every wait
  looking_for_an_abort,  // in every wait
};

struct Setting {
  int ranks, ring_groups, dedicated_groups, steps, micro_batches;
};

/// One step of a rank's program. A rank "is at" an operation until it has finished it.
struct Op {
  enum class Kind {
    unshard,
    open_slot,
    write_slot,
    contribute,
    drain,
    end_of_backward,
    arrive,
    exchange,
    update,
    publish
  };
  Kind kind;
  int group = 0;             // open_slot, write_slot, contribute
  int slot = 0;              // those
  uint64_t count = 0;        // of what the operation needs or makes: version, round of the group, exchange
  int entry = -1;            // contribute: its place in the order of reductions
  int slot_user_entry = -1;  // open_slot: the reduction of what lies in the slot; -1: nothing
};

struct Rank {
  enum class Status : uint8_t { running, finished, failed, dead };
  uint8_t at = 0;       // operation
  uint8_t reduced = 0;  // reductions, in the order of contributions
  bool summing = false;
  Status status = Status::running;
};

struct State {
  std::array<Rank, 3> ranks;
  bool aborted = false, fault_happened = false;

  uint64_t key() const {
    uint64_t key = (aborted ? 1 : 0) + (fault_happened ? 2 : 0);
    for (const Rank& r : ranks)
      key = key << 20 | static_cast<uint64_t>(r.at) << 12 | static_cast<uint64_t>(r.reduced) << 4 |
            static_cast<uint64_t>(r.summing) << 2 | static_cast<uint64_t>(r.status);
    return key;
  }
};

class EpochModel {
 public:
  EpochModel(const Setting& setting, Part dropped) : setting_(setting), dropped_(dropped) {
    const int groups = setting.ring_groups + setting.dedicated_groups;
    std::vector<int> ring_user = {-1, -1}, last_entry(static_cast<size_t>(groups), -1);
    std::vector<uint64_t> round(static_cast<size_t>(groups), 0);
    int ring_next = 0;
    uint64_t exchanges = 0;
    const auto exchange = [&] {
      program_.push_back({.kind = Op::Kind::arrive, .count = ++exchanges});
      program_.push_back({.kind = Op::Kind::exchange, .count = exchanges});
    };
    for (int step = 0; step < setting.steps; ++step) {
      for (int micro = 0; micro < setting.micro_batches; ++micro) {
        program_.push_back({.kind = Op::Kind::unshard, .count = static_cast<uint64_t>(step)});
        for (int g = 0; g < groups; ++g) {
          const auto at_g = static_cast<size_t>(g);
          const bool ring = g < setting.ring_groups;
          const int slot = ring ? ring_next : 2 + g;
          Op op{.kind = Op::Kind::open_slot, .group = g, .slot = slot, .count = round[at_g], .entry = last_entry[at_g]};
          if (ring) {
            op.slot_user_entry = ring_user[static_cast<size_t>(slot)];
            ring_next = 1 - ring_next;
          }
          program_.push_back(op);
          op.kind = Op::Kind::write_slot;
          op.count = ++round[at_g];
          program_.push_back(op);
          op.kind = Op::Kind::contribute;
          op.entry = static_cast<int>(entries_.size());
          program_.push_back(op);
          last_entry[at_g] = op.entry;
          if (ring) ring_user[static_cast<size_t>(slot)] = op.entry;
          entries_.push_back(op);
        }
        program_.push_back({.kind = Op::Kind::drain, .entry = static_cast<int>(entries_.size())});
        program_.push_back({.kind = Op::Kind::end_of_backward});
      }
      exchange();
      program_.push_back({.kind = Op::Kind::update});
      program_.push_back({.kind = Op::Kind::publish, .count = static_cast<uint64_t>(step) + 1});
    }
    exchange();  // the end of the run
    precompute();
  }

  /// What is wrong with the protocol, if anything; `states` is how many there are.
  std::optional<std::string> explore(size_t& states) {
    std::unordered_set<uint64_t> seen;
    std::vector<State> open = {State()};
    for (int r = setting_.ranks; r < 3; ++r) open[0].ranks[static_cast<size_t>(r)].status = Rank::Status::finished;
    seen.insert(open[0].key());
    while (!open.empty()) {
      const State state = open.back();
      open.pop_back();
      next_.clear();
      for (int r = 0; r < setting_.ranks; ++r) step(state, r);
      if (wrong_) return wrong_;
      if (auto wrong = check(state, next_.empty())) return wrong;
      // Somebody may die or give up at any point; once is enough to see what it does to the others.
      if (!state.fault_happened)
        for (int r = 0; r < setting_.ranks; ++r) break_rank(state, r);
      for (const State& next : next_)
        if (seen.insert(next.key()).second) open.push_back(next);
    }
    states = seen.size();
    return std::nullopt;
  }

 private:
  using Kind = Op::Kind;
  using Status = Rank::Status;

  /// Counters and contents as a function of how far a rank is.
  struct Progress {
    uint64_t published = 0, exchanged = 0;
    uint64_t version = 0;  // of its rows; mid-update: neither
    bool updating = false, using_parameters = false;
    std::array<uint64_t, 4> contributed = {};               // by group
    std::array<int, 4> offset = {-1, -1, -1, -1};           // by group: the slot it has named
    std::array<int, 6> content = {-1, -1, -1, -1, -1, -1};  // by slot: entry; -2 while it is written
  };

  void precompute() {
    Progress now;
    for (const Op& op : program_) {
      now.updating = op.kind == Kind::update;
      if (op.kind == Kind::write_slot) now.content[static_cast<size_t>(op.slot)] = -2;
      progress_.push_back(now);
      if (op.kind == Kind::unshard) now.using_parameters = true;
      if (op.kind == Kind::end_of_backward) now.using_parameters = false;
      if (op.kind == Kind::update) ++now.version;
      if (op.kind == Kind::publish) now.published = op.count;
      if (op.kind == Kind::arrive) now.exchanged = op.count;
      if (op.kind == Kind::write_slot) now.content[static_cast<size_t>(op.slot)] = entry_of(op);
      if (op.kind == Kind::contribute) {
        now.contributed[static_cast<size_t>(op.group)] = op.count;
        now.offset[static_cast<size_t>(op.group)] = op.slot;
      }
    }
    now.updating = false;
    progress_.push_back(now);
  }

  int entry_of(const Op& write) const {
    for (size_t e = 0; e < entries_.size(); ++e)
      if (entries_[e].group == write.group && entries_[e].count == write.count) return static_cast<int>(e);
    return -1;
  }

  const Progress& of(const State& s, int r) const { return progress_[s.ranks[static_cast<size_t>(r)].at]; }

  template <class Condition>
  bool all(Condition condition) const {
    for (int r = 0; r < setting_.ranks; ++r)
      if (!condition(r)) return false;
    return true;
  }
  bool all_have_reduced(const State& s, int entry) const {
    return all([&](int r) { return s.ranks[static_cast<size_t>(r)].reduced > entry; });
  }

  bool ready(const State& s, int me, const Op& op) const {
    const int own_reduced = s.ranks[static_cast<size_t>(me)].reduced;
    switch (op.kind) {
      case Kind::unshard:
        return dropped_ == Part::wait_for_published || all([&](int r) { return of(s, r).published >= op.count; });
      case Kind::open_slot:
        // slot_blocked_by(): the reducer has reduced its own outstanding rounds first.
        if (own_reduced <= op.entry || own_reduced <= op.slot_user_entry) return false;
        if (dropped_ != Part::wait_for_own_round && op.entry >= 0 && !all_have_reduced(s, op.entry)) return false;
        return dropped_ == Part::wait_for_slot_user || op.slot_user_entry < 0 ||
               all_have_reduced(s, op.slot_user_entry);
      case Kind::drain:
        return own_reduced >= op.entry;
      case Kind::exchange:
        return dropped_ == Part::wait_for_backward || all([&](int r) { return of(s, r).exchanged >= op.count; });
      default:
        return true;
    }
  }

  // The sum of entry e reads every rank's slot, where that rank says that it lies.
  void expect_slots(const State& s, int me, int e) {
    const Op& entry = entries_[static_cast<size_t>(e)];
    for (int r = 0; r < setting_.ranks; ++r) {
      const Progress& theirs = of(s, r);
      if (theirs.offset[static_cast<size_t>(entry.group)] != entry.slot ||
          theirs.content[static_cast<size_t>(entry.slot)] != e)
        wrong_ = fmt::format("rank {} sums group {} round {} of rank {}, whose slot holds something else", me,
                             entry.group, entry.count, r);
    }
  }

  void step(const State& s, int me) {
    const Rank& rank = s.ranks[static_cast<size_t>(me)];
    if (rank.status != Status::running) return;
    const auto go = [&](auto change) {
      next_.push_back(s);
      change(next_.back().ranks[static_cast<size_t>(me)], next_.back());
    };
    if (rank.summing) {
      expect_slots(s, me, rank.reduced);
      return go([](Rank& r, State&) { r.summing = false, ++r.reduced; });
    }
    bool moved = false;
    // reduce(), patient or not, of the oldest outstanding round.
    const int e = rank.reduced;
    if (e < static_cast<int>(entries_.size()) &&
        of(s, me).contributed[static_cast<size_t>(entries_[static_cast<size_t>(e)].group)] >=
            entries_[static_cast<size_t>(e)].count) {
      const Op& entry = entries_[static_cast<size_t>(e)];
      const bool there =
          all([&](int r) { return of(s, r).contributed[static_cast<size_t>(entry.group)] >= entry.count; });
      if (there || dropped_ == Part::wait_for_contributed) {
        expect_slots(s, me, e);
        go([](Rank& r, State&) { r.summing = true; });
        moved = true;
      }
    }
    const Op& op = program_[rank.at];
    if (ready(s, me, op)) {
      go([&](Rank& r, State&) {
        if (++r.at == program_.size()) r.status = Status::finished;
      });
      moved = true;
    }
    if (moved) return;
    // It waits. A wait ends when it finds an abort or a dead peer; the rank then gives up and says so.
    const bool dead = !all([&](int r) { return s.ranks[static_cast<size_t>(r)].status != Status::dead; });
    if ((s.aborted && dropped_ != Part::looking_for_an_abort) || (dead && dropped_ != Part::looking_for_the_dead))
      go([](Rank& r, State& next) { r.status = Status::failed, next.aborted = true; });
  }

  void break_rank(const State& s, int me) {
    if (s.ranks[static_cast<size_t>(me)].status != Status::running) return;
    for (const Status end : {Status::dead, Status::failed}) {
      next_.push_back(s);
      next_.back().ranks[static_cast<size_t>(me)].status = end;
      next_.back().aborted = end == Status::failed;
      next_.back().fault_happened = true;
    }
  }

  std::optional<std::string> check(const State& s, bool last) const {
    const auto status = [&](int r) { return s.ranks[static_cast<size_t>(r)].status; };
    for (int reader = 0; reader < setting_.ranks; ++reader) {
      if (status(reader) != Status::running || !of(s, reader).using_parameters) continue;
      for (int owner = 0; owner < setting_.ranks; ++owner)
        if (of(s, owner).updating || of(s, owner).version != of(s, reader).version)
          return fmt::format("rank {} uses parameters that rank {} overwrites or has not updated", reader, owner);
    }
    if (!last) return std::nullopt;
    bool all_came = true, somebody_finished = false;
    for (int r = 0; r < setting_.ranks; ++r) {
      if (status(r) == Status::running)
        return fmt::format("rank {} waits for ever in operation {}", r, s.ranks[static_cast<size_t>(r)].at);
      all_came = all_came && of(s, r).exchanged == program_.back().count;
      somebody_finished = somebody_finished || status(r) == Status::finished;
    }
    if (!all_came && somebody_finished) return "a rank finished without the others";
    if (all_came && !s.fault_happened && !all([&](int r) { return status(r) == Status::finished; }))
      return "a rank failed without a fault";
    return std::nullopt;
  }

  Setting setting_;
  Part dropped_;
  std::vector<Op> program_, entries_;
  std::vector<Progress> progress_;
  std::vector<State> next_;
  std::optional<std::string> wrong_;
};

const std::vector<Setting> kSettings = {
    {.ranks = 2, .ring_groups = 2, .dedicated_groups = 0, .steps = 2, .micro_batches = 2},
    {.ranks = 2, .ring_groups = 3, .dedicated_groups = 0, .steps = 1, .micro_batches = 2},
    {.ranks = 2, .ring_groups = 1, .dedicated_groups = 1, .steps = 2, .micro_batches = 2},
    {.ranks = 3, .ring_groups = 2, .dedicated_groups = 0, .steps = 2, .micro_batches = 2},
    {.ranks = 3, .ring_groups = 3, .dedicated_groups = 0, .steps = 1, .micro_batches = 2},
    {.ranks = 3, .ring_groups = 1, .dedicated_groups = 1, .steps = 2, .micro_batches = 1},
};

TEST(EpochModel, NoInterleavingOverwritesWhatIsReadOrWaitsForEver) {
  size_t all = 0;
  for (const Setting& setting : kSettings) {
    size_t states = 0;
    EXPECT_EQ(EpochModel(setting, Part::none).explore(states), std::nullopt);
    EXPECT_GT(states, 1000) << "that is too few to be all";
    all += states;
  }
  RecordProperty("states", static_cast<int>(all));
}

TEST(EpochModel, EveryPartOfTheProtocolIsNeeded) {
  const std::vector<std::pair<Part, std::string>> parts = {
      {Part::wait_for_published, "uses parameters"},      {Part::wait_for_own_round, "holds something else"},
      {Part::wait_for_slot_user, "holds something else"}, {Part::wait_for_contributed, "holds something else"},
      {Part::wait_for_backward, "uses parameters"},       {Part::looking_for_the_dead, "waits for ever"},
      {Part::looking_for_an_abort, "waits for ever"}};
  for (const auto& [part, said] : parts) {
    std::string found;
    for (const Setting& setting : kSettings) {
      size_t states = 0;
      found += EpochModel(setting, part).explore(states).value_or("") + "\n";
    }
    EXPECT_NE(found.find(said), std::string::npos) << "without part " << static_cast<int>(part) << ": " << found;
  }
}

}  // namespace
}  // namespace sherd
