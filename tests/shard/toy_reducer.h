// One rank's reducer over a store that writes down what it is asked for.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sherd/shard/reducer.h"
#include "tests/shard/toy_groups.h"

namespace sherd::testing {

using Order = std::vector<size_t>;

/// A store that writes down in which order groups are contributed.
class RecordingStore : public Store {
 public:
  explicit RecordingStore(std::unique_ptr<Store> inner) : inner_(std::move(inner)) {}
  void begin_unshard(size_t g) override { inner_->begin_unshard(g); }
  at::Tensor unshard(size_t g) override { return inner_->unshard(g); }
  void reshard(size_t g) override { inner_->reshard(g); }
  const std::vector<int>& owned() const override { return inner_->owned(); }
  at::Tensor rows(size_t g, size_t p, int owner) override { return inner_->rows(g, p, owner); }
  void publish(size_t g) override { inner_->publish(g); }
  int64_t slot_blocked_by(size_t g) const override { return inner_->slot_blocked_by(g); }
  at::Tensor open_slot(size_t g) override { return inner_->open_slot(g); }
  void contribute(size_t g) override {
    contributed.push_back(g);
    inner_->contribute(g);
  }
  bool reduce(size_t g, Round round, Patience patience) override {
    const bool done = inner_->reduce(g, round, patience);
    if (done) reduced.push_back(g);
    return done;
  }
  void finish_round() override { inner_->finish_round(); }
  at::Tensor gradient(size_t g) override { return inner_->gradient(g); }
  void set_roles(const std::vector<Roles>& roles) override { inner_->set_roles(roles); }
  void renew_gradient(size_t g) override { inner_->renew_gradient(g); }
  void set_divisor(size_t g, double divisor) override { inner_->set_divisor(g, divisor); }
  void set_reach(Reach reach) override { inner_->set_reach(reach); }
  bool keeps_back(size_t g) const override { return inner_->keeps_back(g); }
  void check_unwritten() override { inner_->check_unwritten(); }
  bool was_written() const override { return inner_->was_written(); }
  void take_back() override { inner_->take_back(); }
  void drop_unshard(size_t g) noexcept override { inner_->drop_unshard(g); }
  int index() const override { return inner_->index(); }
  void drop() noexcept override { inner_->drop(); }
  void restart() override { inner_->restart(); }

  Order contributed, reduced;

 private:
  std::unique_ptr<Store> inner_;
};

/// Four groups and the reducer of one rank.
class ReducerRank {
 public:
  ReducerRank(Transport& transport, const Strategy& strategy, SlotKind slot)
      : ReducerRank(transport, {std::shared_ptr<Transport>(std::shared_ptr<void>(), &transport), nullptr}, strategy,
                    slot) {}
  /// On the axes of a mesh over `transport`.
  ReducerRank(Transport& transport, const StoreTransports& axes, const Strategy& strategy, SlotKind slot)
      : transport_(transport),
        plan(toy_plan(strategy, axes.shard->size(), slot)),
        store(make_store(axes, ledger_, plan)) {
    std::vector<ParamGroup*> pointers;
    for (size_t g = 0; g < 4; ++g) {
      std::vector<at::Tensor> tensors;
      for (const auto& p : plan.groups[g].layout.parameters) tensors.push_back(at::zeros(p.sizes).requires_grad_());
      groups_.push_back(std::make_unique<ParamGroup>(store, pool_, g, plan.groups[g], tensors));
      pointers.push_back(groups_.back().get());
    }
    reducer.emplace(store, pointers, Order{3, 2, 1, 0}, strategy.gradients);
  }

  /// What a model does after a fault.
  void abandon() {
    reducer->abandon();
    store.drop();
    transport_.recover();
    store.restart();
  }

  void set_roles(const std::vector<Roles>& roles) {
    store.set_roles(roles);
    for (size_t g = 0; g < 4; ++g) {
      plan.groups[g].set_roles(roles[g]);
      groups_[g]->set_roles(roles[g]);
    }
    reducer->follow_roles();
  }

  /// What autograd does: adds a gradient of `round` to .grad, then tells.
  bool give(size_t g, size_t p, int round) {
    const GroupLayout& layout = plan.groups[g].layout;
    const auto& sizes = layout.parameters[p].sizes;
    at::Tensor gradient = toy_gradient(layout, p, transport_.rank(), round).view(sizes);
    if (sizes.size() == 2) gradient = gradient.t().contiguous().t();  // autograd's gradients need not be contiguous
    at::Tensor& held = grad(g, p);
    held = held.defined() ? held + gradient : gradient;
    return reducer->accumulated(g, p);
  }
  void give_all(size_t g, int round) {
    for (size_t p = plan.groups[g].layout.parameters.size(); p-- > 0;) give(g, p, round);
  }
  void whole_round(int round) {
    reducer->begin(Gradients::reduce);
    for (const size_t g : {3u, 2u, 1u, 0u}) give_all(g, round);
    reducer->finish();
  }

  at::Tensor& grad(size_t g, size_t p) { return groups_[g]->parameters()[p].mutable_grad(); }
  bool no_grads() {
    for (size_t g = 0; g < 4; ++g)
      for (size_t p = 0; p < groups_[g]->parameters().size(); ++p)
        if (grad(g, p).defined()) return false;
    return true;
  }
  /// The reduced gradients are the sums of rounds [first, last).
  void expect_sums(int first, int last) {
    for (size_t g = 0; g < 4; ++g) expect_toy_sum(store, plan.groups[g].layout, g, first, last);
  }
  bool late() const { return transport_.size() > 1 && transport_.rank() == transport_.size() - 1; }

 private:
  Transport& transport_;
  Ledger ledger_;
  BufferPool pool_{ledger_, MemoryKind::unsharded, at::kCPU};

 public:
  StorePlan plan;
  RecordingStore store;
  std::optional<Reducer> reducer;

 private:
  std::vector<std::unique_ptr<ParamGroup>> groups_;
};

}  // namespace sherd::testing
