// Parameters that are seen whole outside of forwards: model.h, [Note: Whole outside].
#include "python/src/model.h"
#include "sherd/base/bytes.h"
#include "sherd/base/error.h"
#include "sherd/torch/versions.h"

namespace sherd::python {

// Where `outside` is the module's own parameter, its group points it to the store's memory.
void Model::show_outside(size_t g) {
  ParamGroup& group = *core_->model->groups()[g];
  Store& store = core_->model->store();
  if (group.type() == group.compute_type()) {
    group.unshard();
    group.reshard();
  }
  const at::Tensor whole = store.unshard(g);
  auto* base = static_cast<std::byte*>(const_cast<void*>(whole.const_data_ptr()));
  for (size_t p = 0; p < faces_[g].size(); ++p) {
    Face& face = faces_[g][p];
    const at::Tensor& outside = face.parameter.outside;
    face.outside_memory = outside.storage();
    if (outside.is_same(face.parameter.whole)) continue;
    auto* storage = outside.storage().unsafeGetStorageImpl();
    auto* owner = new std::shared_ptr<Core>(core_);
    point_storage(*storage,
                  at::DataPtr(
                      base + group.layout().parameters[p].offset * static_cast<int64_t>(outside.element_size()), owner,
                      [](void* context) { delete static_cast<std::shared_ptr<Core>*>(context); }, outside.device()));
  }
}

bool Model::is_written(const Face& face) const {
  const at::Tensor& outside = face.parameter.outside;
  return outside.defined() &&
         (outside._version() != face.outside_version || !outside.storage().is_alias_of(face.outside_memory));
}

bool Model::written_outside() const {
  if (!sees_whole_) return false;
  if (core_->model->store().was_written()) return true;
  for (const auto& faces : faces_)
    for (const auto& face : faces)
      if (is_written(face)) return true;
  return false;
}

// While no rank reads.
void Model::take_written() {
  const at::NoGradGuard no_grad;
  Store& store = core_->model->store();
  for (size_t g = 0; g < faces_.size(); ++g) {
    for (size_t p = 0; p < faces_[g].size(); ++p) {
      Face& face = faces_[g][p];
      const at::Tensor &outside = face.parameter.outside, &local = face.parameter.local;
      const bool moved = !outside.storage().is_alias_of(face.outside_memory);
      if (moved && (outside.scalar_type() != local.scalar_type() || outside.sizes() != face.parameter.shard.sizes()))
        config_error("shard", "got data of {} of sizes {} for parameter '{}', expected {} of sizes {}",
                     c10::toString(outside.scalar_type()), c10::str(outside.sizes()), face.parameter.fqn,
                     c10::toString(local.scalar_type()), c10::str(face.parameter.shard.sizes()));
      if (local.numel() > 0 && (moved || is_written(face) || store.was_written())) {
        const GroupLayout& layout = core_->model->groups()[g]->layout();
        const int64_t first = layout.elements(p, store.index()).first - layout.parameters[p].offset;
        const at::Tensor values = outside.detach().reshape(-1).narrow(0, first, local.numel());
        if (values.const_data_ptr() != local.const_data_ptr()) local.view(-1).copy_(values);
      }
      if (!moved) continue;
      outside.unsafeGetTensorImpl()->set_storage_keep_dtype(face.outside_memory);
      outside.unsafeGetTensorImpl()->set_sizes_contiguous(face.parameter.shard.sizes());
      outside.unsafeGetTensorImpl()->set_storage_offset(0);
    }
  }
  store.take_back();
  updated_ = true;
}

// Programs freeze and unfreeze what they see.
void Model::follow_outside() {
  for (size_t g = 0; g < faces_.size(); ++g) {
    for (size_t p = 0; p < faces_[g].size(); ++p) {
      const Parameter& parameter = faces_[g][p].parameter;
      const bool wanted = parameter.outside.requires_grad();
      if (!parameter.outside.is_same(parameter.whole) && wanted != (role(g, p) == Role::awaited))
        parameter.shard.set_requires_grad(wanted);
    }
  }
}

void Model::settle() {
  entering_forward();
  for (size_t g = 0; sees_whole_ && g < faces_.size(); ++g) show_outside(g);
  remember_versions();
}

}  // namespace sherd::python
