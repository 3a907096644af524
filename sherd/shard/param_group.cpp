#include "sherd/shard/param_group.h"

#include "sherd/base/error.h"
#include "sherd/torch/versions.h"

namespace sherd {

ParamGroup::ParamGroup(Store& store, BufferPool& pool, size_t index, const GroupPlan& plan,
                       std::vector<at::Tensor> parameters)
    : store_(store), pool_(pool), index_(index), plan_(plan), parameters_(std::move(parameters)) {
  for (const auto& parameter : layout().parameters)
    while_sharded_.push_back(
        fmt::format("[shard] parameter '{}' of {} was used while it is sharded; try to use it inside its unit's "
                    "forward, or a strategy that keeps it whole (zero1, ddp)",
                    parameter.fqn, title_of_unit(layout().unit)));
  arm();
  versions_.resize(parameters_.size());
  accept_changes();
}

void ParamGroup::begin_unshard() {
  if (state_ != GroupState::sharded) return;
  store_.begin_unshard(index_);
  state_ = GroupState::unsharding;
}

void ParamGroup::unshard() {
  if (state_ == GroupState::unsharded) return;
  at::Tensor whole = store_.unshard(index_);
  if (casts()) {
    const c10::InferenceMode guard(false);
    const at::NoGradGuard no_grad;
    cast_ = pool_.lend(whole.numel(), plan_.compute);
    cast_.tensor().copy_(whole);
    store_.reshard(index_);
    whole = cast_.tensor();
  }
  point_to(whole);
  state_ = GroupState::unsharded;
}

void ParamGroup::reshard() {
  if (state_ == GroupState::sharded) return;
  if (lets_go()) {
    arm();
    cast_.give_back();
    store_.reshard(index_);
  }
  state_ = GroupState::sharded;
}

void ParamGroup::abandon_unshard() noexcept {
  if (state_ != GroupState::unsharding) return;
  store_.drop_unshard(index_);
  state_ = GroupState::sharded;
}

void ParamGroup::interrupt() noexcept {
  if (lets_go()) arm();
  cast_.give_back();
  state_ = GroupState::sharded;
}

void ParamGroup::publish() {
  reshard();
  store_.publish(index_);
  for (const auto& parameter : parameters_) parameter.unsafeGetTensorImpl()->bump_version();
  accept_changes();
}

void ParamGroup::check_unchanged() {
  if (plan_.access == Access::write) return;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    if (versions_[p] == parameters_[p]._version()) continue;
    accept_changes();
    fault("shard",
          "got parameter '{}' of {} changed in place in forward, expected reads: other ranks do not see the change; "
          "try to change it between steps, through the model's parameters, or make it a buffer",
          layout().parameters[p].fqn, title_of_unit(layout().unit));
  }
}

void ParamGroup::accept_changes() {
  for (size_t p = 0; p < parameters_.size(); ++p) versions_[p] = parameters_[p]._version();
}

void ParamGroup::arm() {
  for (size_t p = 0; p < parameters_.size(); ++p) {
    auto* storage = parameters_[p].storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(at::DataPtr(nullptr, parameters_[p].device()));
    storage->release_data_and_set_meta_custom_data_ptr_error_msg_(while_sharded_[p]);
  }
  pointed_ = nullptr;
}

void ParamGroup::point_to(const at::Tensor& whole) {
  void* base = const_cast<void*>(whole.const_data_ptr());
  if (base == pointed_) return;
  for (size_t p = 0; p < parameters_.size(); ++p) {
    auto* storage = parameters_[p].storage().unsafeGetStorageImpl();
    point_storage(*storage,
                  at::DataPtr(static_cast<char*>(base) + bytes_of(layout().parameters[p].offset, plan_.compute),
                              parameters_[p].device()));
    // An in-place write would be lost, or reach other ranks: it throws. (Kernels that only read ask for const data.)
    if (plan_.access == Access::read) storage->set_throw_on_mutable_data_ptr();
  }
  pointed_ = base;
}

}  // namespace sherd
