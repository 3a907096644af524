#include "sherd/step/step.h"

#include <fmt/ranges.h>

#include "sherd/base/error.h"
#include "sherd/step/muon_step.h"
#include "sherd/step/non_finite.h"
#include "sherd/step/records.h"
#include "sherd/step/row_norm.h"

namespace sherd {
namespace {

/// What every rank tells the others before an update.
struct StepRecord {
  RowNorm::Part squares;
  double schedule;   // a hash of the units that it has run
  int64_t attempts;  // steps before this one
};

void check_ranks_agree(const std::vector<StepRecord>& records, int64_t attempts, ShardedModel& model) {
  std::vector<double> hashes;
  for (size_t r = 0; r < records.size(); ++r) {
    hashes.push_back(records[r].schedule);
    if (records[r].attempts != attempts)
      fault("step",
            "got rank {} in step {} and this rank in step {}, expected all ranks in the same one: a fault has "
            "parted them; try to go on from the last checkpoint",
            r, records[r].attempts + 1, attempts + 1);
  }
  model.compare_schedules(hashes);
}

}  // namespace

Step::Step(ShardedModel& model, Ledger& ledger, const StepOptions& options, Master master)
    : model_(model),
      ledger_(ledger),
      shards_(model),
      optim_groups_(options.optimizer, options.optimizer_groups),
      rule_(make_update_rule(options.update)),
      schedule_(options.schedule),
      judge_(options) {
  if (options.muon) muon_.emplace(*options.muon);
  choose_rules(options, master);
  std::vector<const OwnedShard*> shards;
  for (const auto& shard : shards_.all()) shards.push_back(&shard);
  states_ = make_states(ledger_, shards, rules_);
}

void Step::choose_rules(const StepOptions& options, Master master) {
  std::vector<std::string> cut;
  for (size_t i = 0; i < shards_.all().size(); ++i) {
    const OwnedShard& shard = shards_.all()[i];
    values_.push_back(&optim_groups_.find(shard.fqn));
    ShardRule& how = rules_.emplace_back();
    if (!shards_.trainable(i)) continue;
    const bool matrix = muon_ && shard.sizes.size() == 2 && !any_glob_matches(options.not_muon, shard.fqn);
    how.rule = matrix ? &*muon_ : rule_.get();
    how.master = master_for(shard, master);
    if (!matrix) how.moments = moments_of(i, options, cut);
  }
  if (!cut.empty())
    notes_.push_back(fmt::format("optimizer: fp32 moments for {} parameter{} whose shards would cut a block of {}: {}",
                                 cut.size(), cut.size() == 1 ? "" : "s", kMomentBlock, fmt::join(cut, ", ")));
}

MomentType Step::moments_of(size_t i, const StepOptions& options, std::vector<std::string>& cut) const {
  if (options.moments == MomentType::fp32) return MomentType::fp32;
  const OwnedShard& shard = shards_.all()[i];
  const MomentFit fit = fit_of_moments(shard, options.fp32_moments);
  if (fit == MomentFit::cuts_blocks && i % shards_.pieces() == 0) cut.push_back(shard.fqn);
  return fit == MomentFit::eight_bits ? MomentType::eight_bits : MomentType::fp32;
}

StepReport Step::run(double lr_scale, std::span<const double> shared_values) {
  const at::NoGradGuard no_grad;
  const Said said(model_, "step");
  StepReport report;
  report.lr_scale = lr_scale * learning_rate_scale(schedule_, judge_.made());
  try {
    // A step is the end of what a forward began: an abort since then, whoever gave up, is this step's too.
    if (model_.interrupted()) model_.recover();
    model_.finish_backward();
    model_.check_roles();
    // This exchange is also what keeps an owner from overwriting parameters that a peer's backward still reads.
    const double scaled_norm = global_norm(shared_values, report.shared);
    static_cast<Verdict&>(report) = judge_.judge(scaled_norm, [this] { return origin_of_non_finite(model_); });
  } catch (const std::exception& error) {
    model_.interrupt(error.what());
    throw;
  }
  if (report.update == StepReport::Update::skipped) {
    model_.publish();
    return report;
  }
  try {
    update_all({judge_.made(), report.lr_scale, report.gradient_scale});
    model_.publish();
  } catch (const std::exception& error) {
    model_.transport().abort(error.what());
    fault("step", "the update of step {} failed half-way: {}; try to go on from the last checkpoint", judge_.made(),
          error.what());
  }
  return report;
}

// The same bits for any number of ranks: see RowNorm.
double Step::global_norm(std::span<const double> shared_values, std::vector<double>& shared) {
  RowNorm norm(2);
  shards_.complete_gradients();
  // Where ranks hold the same rows, those of the first replica count.
  if (shards_.holds_first_copy())
    for (const size_t i : shards_.of_this_rank())
      if (shards_.trainable(i)) norm.add(shards_.gradient(i), shards_.all()[i].row_elements);
  const StepRecord mine{norm.part(), model_.schedule_hash(), judge_.attempts()};
  auto received = exchange_records(model_.transport(), {}, mine, shared_values);
  check_ranks_agree(received.records, judge_.attempts(), model_);
  shared = std::move(received.numbers);
  std::vector<RowNorm::Part> parts;
  for (const auto& record : received.records) parts.push_back(record.squares);
  return norm.of(parts);
}

UpdatePiece Step::piece_with_gradient(size_t i) const {
  return states_[i].piece(shards_.all()[i], shards_.gradient(i));
}

void Step::update_all(const UpdateTime& time) {
  const size_t pieces = shards_.pieces();
  std::vector<MuonMatrix> matrices;
  for (size_t first = 0; first < shards_.all().size(); first += pieces) {
    if (rules_[first].rule == nullptr) continue;
    if (muon_ && rules_[first].rule == &*muon_) {
      const OwnedShard& shard = shards_.all()[first];
      const auto rows = [this, first, pieces] {
        std::vector<UpdatePiece> all;
        for (size_t i = first; i < first + pieces; ++i) all.push_back(piece_with_gradient(i));
        return all;
      };
      matrices.push_back({shard.sizes[0], shard.row_elements, rows, *values_[first]});
      continue;
    }
    for (size_t i = first; i < first + pieces; ++i)
      if (shards_.all()[i].values.numel() > 0) rules_[i].rule->update(piece_with_gradient(i), *values_[i], time);
  }
  if (muon_)
    MuonStep(*muon_, model_.shard_transport(), ledger_, pieces == 1 ? Spread::sharded : Spread::whole)
        .run(matrices, time);
}

}  // namespace sherd
