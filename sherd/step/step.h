// The optimizer step of a model: agreement between ranks, norm, verdict, the update of the rows that this rank owns and
// their publication.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sherd/memory/ledger.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/shard/sharded_model.h"
#include "sherd/step/owned_shard.h"
#include "sherd/step/shard_states.h"
#include "sherd/step/step_options.h"
#include "sherd/step/step_policy.h"

namespace sherd {

/// What a step did, the same on all ranks.
struct StepReport : Verdict {
  double lr_scale = 1;         // of the schedule and the caller, of an update that was made or would have been
  std::vector<double> shared;  // every rank's extra values, rank by rank
};

class Step {
 public:
  /// States of the trainable shards, zero-filled and booked; 16-bit ones are rounded from `master`. `model` and
  /// `ledger` outlive it. Throws ConfigError.
  Step(ShardedModel& model, Ledger& ledger, const StepOptions& options, Master master);

  /// See Engine::step().
  StepReport run(double lr_scale, std::span<const double> shared_values);

  const OwnedShards& shards() const { return shards_; }
  /// Shard i of shards() as its rule updates it, without a gradient.
  UpdatePiece piece(size_t i) const { return states_[i].piece(shards_.all()[i]); }
  const StepJudge& judge() const { return judge_; }
  /// Which parameters have fp32 moments though 8 bits were asked for, and why; empty where there are none.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  void choose_rules(const StepOptions& options, Master master);
  MomentType moments_of(size_t i, const StepOptions& options, std::vector<std::string>& cut) const;
  double global_norm(std::span<const double> shared_values, std::vector<double>& shared);
  UpdatePiece piece_with_gradient(size_t i) const;
  void update_all(const UpdateTime& time);

  ShardedModel& model_;
  Ledger& ledger_;
  OwnedShards shards_;
  OptimGroups optim_groups_;
  std::vector<const Hyperparameters*> values_;  // by shard
  std::unique_ptr<UpdateRule> rule_;
  std::optional<MuonRule> muon_;  // of matrices, where there is one
  std::vector<ShardRule> rules_;  // by shard; none where the shard is not trained
  std::vector<ShardState> states_;
  std::vector<std::string> notes_;
  ScheduleOptions schedule_;
  StepJudge judge_;
};

}  // namespace sherd
