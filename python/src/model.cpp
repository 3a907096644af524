#include "python/src/model.h"

#include <torch/csrc/Exceptions.h>

#include <unordered_map>

#include "sherd/base/error.h"
#include "sherd/shard/hooks.h"

namespace sherd::python {
namespace {

std::vector<FoundUnit> found_units(const std::vector<UnitPlan>& plans) {
  std::vector<FoundUnit> found;
  for (const auto& plan : plans) {
    FoundUnit unit{plan.name, plan.unit.get(), plan.parent, 0, {}, plan.after_forward};
    for (const auto& parameter : plan.parameters) unit.parameters.push_back({parameter.fqn, parameter.whole});
    if (!found.empty()) ++found[plan.parent].children;
    found.push_back(std::move(unit));
  }
  return found;
}

// autograd carries Python's own exceptions through as they are; of C++ ones only the message.
void with_python_types(const std::function<void()>& step) {
  const auto raise = [](const char* type, const std::exception& error) {
    const py::gil_scoped_acquire gil;
    PyErr_SetString(py::module_::import("sherd._C").attr(type).ptr(), error.what());
    python_error as_python;
    as_python.persist();
    throw as_python;
  };
  try {
    step();
  } catch (const FaultError& error) {
    raise("FaultError", error);
  } catch (const ConfigError& error) {
    raise("ConfigError", error);
  }
}

// DTensors keep their local tensors in a slot; its descriptor reads one in a fifth of the time of an attribute, and a
// forward reads all.
PyObject* read_local_tensor(PyObject* dtensor) {
  static const py::handle slot =
      py::object(py::module_::import("torch.distributed.tensor").attr("DTensor").attr("_local_tensor")).release();
  return Py_TYPE(slot.ptr())->tp_descr_get(slot.ptr(), dtensor, nullptr);
}

}  // namespace

Model::Model(std::vector<UnitPlan> plans, std::shared_ptr<Transport> transport, const ModelOptions& options,
             MakeGradient make_gradient)
    : core_(std::make_shared<Core>()),
      make_gradient_(std::move(make_gradient)),
      replicate_(options.replicate),
      name_(options.name) {
  ShardOptions shard;
  shard.strategy = find_strategy(options.strategy);
  // As with FSDP2, it is the mesh that makes a strategy hybrid.
  if (options.replicate > 1) shard.strategy.axes = MeshAxes::replicate_and_shard;
  // The user's optimizer sees this rank's rows only: where moments could be whole they are sharded all the same.
  shard.strategy.optimizer = Spread::sharded;
  shard.strategy.sums = Sums::owner;
  shard.access = Access::watch;
  shard.persistent_below = options.persistent_below;
  std::unordered_map<const at::TensorImpl*, ParameterTypes> types;
  for (const auto& plan : plans)
    for (const auto& p : plan.parameters)
      types[p.whole.unsafeGetTensorImpl()] = {p.local.scalar_type(), p.reduce, p.copies};
  shard.types = [&](const FoundParameter& found) { return types.at(found.tensor.unsafeGetTensorImpl()); };
  shard.mesh = Mesh::over(transport->size(), transport->rank(), replicate_, 0);
  core_->transport = std::move(transport);
  for (const auto& plan : plans) core_->units.push_back(plan.unit);
  {
    const py::gil_scoped_release no_gil;
    core_->model = std::make_unique<ShardedModel>(found_units(plans), *core_->transport, core_->ledger, shard);
  }
  std::unordered_map<const at::TensorImpl*, Parameter> by_whole;
  for (auto& plan : plans)
    for (auto& parameter : plan.parameters) by_whole[parameter.whole.unsafeGetTensorImpl()] = std::move(parameter);
  ShardedModel& model = *core_->model;
  for (size_t g = 0; g < model.groups().size(); ++g) {
    faces_.emplace_back();
    storage_users_.push_back(0);
    for (size_t p = 0; p < model.groups()[g]->parameters().size(); ++p)
      make_face(g, p, by_whole.at(model.groups()[g]->parameters()[p].unsafeGetTensorImpl()));
    make_gradients(g);
  }
  wanted_hash_ = hash_of(wanted_gradients());
  shards_.emplace(model);
  for (size_t g = 0; g < faces_.size(); ++g)
    for (size_t p = 0; p < faces_[g].size(); ++p)
      places_[faces_[g][p].parameter.shard.unsafeGetTensorImpl()] = shards_->index_of(g, p, 0);
  for (const auto& unit : core_->units) {
    unit->belong_to(this);
    for (const auto* group : unit->groups())
      for (Face& face : faces_[group->index()]) face.unit = unit.get();
  }
  model.course().publish();
  for (size_t g = 0; sees_whole_ && g < faces_.size(); ++g) show_outside(g);
  remember_versions();
  model.course().observe_backward(
      {[this] { begin_backward(); }, [this] { end_backward(); }, [this] { broke_backward(); }, with_python_types});
}

Model::~Model() {
  core_->model->course().observe_backward({});
  for (const auto& unit : core_->units) unit->belong_to(nullptr);
}

// The values move to the store's memory, which lives as long as the DTensor.
void Model::make_face(size_t g, size_t p, Parameter parameter) {
  struct Owner {
    std::shared_ptr<Core> core;
    at::Tensor rows;
  };
  Store& store = core_->model->store();
  const at::Tensor rows = store.rows(g, p, store.index());
  const at::Tensor& local = parameter.local;
  SHERD_CHECK(local.is_contiguous() && local.storage_offset() == 0 && local.numel() == rows.numel());
  rows.copy_(local.view(-1));
  auto* owner = new Owner{core_, rows};
  local.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(at::DataPtr(
      rows.mutable_data_ptr(), owner, [](void* context) { delete static_cast<Owner*>(context); }, local.device()));
  sees_whole_ = sees_whole_ || parameter.outside.defined();
  Face face{std::move(parameter)};
  face.shard = py::cast(face.parameter.shard);
  face.rows = py::cast(face.parameter.local);
  faces_[g].push_back(std::move(face));
}

std::shared_ptr<OwnedShard> Model::shard_of(const at::Tensor& parameter) const {
  const auto found = places_.find(parameter.unsafeGetTensorImpl());
  return found == places_.end() ? nullptr : std::make_shared<OwnedShard>(shards_->all()[found->second]);
}

bool Model::rows_have_changed() const {
  for (const auto& faces : faces_)
    for (const auto& face : faces)
      if (face.shard_version != face.parameter.shard._version() ||
          face.local_version != face.parameter.local._version())
        return true;
  return false;
}

// Whoever gave a parameter another local tensor means its values.
bool Model::reclaim_rows() {
  bool found = false;
  const py::gil_scoped_acquire gil;
  for (auto& faces : faces_) {
    for (Face& face : faces) {
      const auto now = py::reinterpret_steal<py::object>(read_local_tensor(face.shard.ptr()));
      if (!now) throw py::error_already_set();
      if (now.is(face.rows)) continue;
      py::module_::import("sherd.parameters").attr("take_back")(face.shard, now, face.rows);
      found = true;
    }
  }
  return found;
}

void Model::remember_versions() {
  for (auto& faces : faces_) {
    for (auto& face : faces) {
      face.shard_version = face.parameter.shard._version();
      face.local_version = face.parameter.local._version();
      if (face.parameter.outside.defined()) face.outside_version = face.parameter.outside._version();
    }
  }
}

void Model::entering_forward() {
  if (open_ > 0 || inside_backward()) return;
  if (sees_whole_) follow_outside();
  recover();
  failure_.clear();
  const bool reclaimed = reclaim_rows(), written = written_outside();
  bool changed = updated_ || reclaimed || written || rows_have_changed();
  // Adapters are switched off and on around forwards without gradients, while a backward is still to come.
  const bool other_gradients = at::GradMode::is_enabled() && first_with_other_requires_grad() != nullptr;
  // After a backward ranks agree on it: some may have changed their rows by ways that others have not.
  if ((has_reduced_ || other_gradients) && core_->transport->size() > 1) {
    changed = agree_on_changes(changed);
  } else if (written && has_read_) {
    barrier(*core_->transport);
  }
  has_read_ = true;
  if (other_gradients) {
    follow_requires_grad();
  } else if (has_reduced_ && unsettled_ > 0) {
    --unsettled_;
    set_roles();
  }
  has_reduced_ = false;
  if (!changed) return;
  if (written) take_written();
  core_->model->course().publish();
  updated_ = false;
  remember_versions();
}

// An interrupted step may have ended its backward on some ranks only: all exchange what has changed.
void Model::recover() {
  if (!core_->model->course().recover()) return;
  has_reduced_ = true;
  holding_ = false;
  end_leaving_out();
}

void Model::failed_in_forward(const std::string& unit, const std::string& cause) {
  if (failure_.empty()) failure_ = fmt::format("{} (in the forward of {} of {})", cause, title_of_unit(unit), name_);
  if (open_ == 0) core_->model->course().interrupt(std::exchange(failure_, {}));
}

void Model::expect_backward(const std::vector<at::Tensor>& roots) {
  core_->model->course().expect_backward(roots);
  ++expected_;
}

// Python knows why, where it has begun the backward.
void Model::broke_backward() {
  broken_ = expected_ > 0;
  if (!broken_) core_->model->course().interrupt("an exception ended its backward");
}

void Model::failed_in_backward(const std::string& cause, const py::function& has_parameters) {
  const bool was_in_it = std::exchange(broken_, false);
  if (core_->model->course().interrupted() || !(was_in_it || has_parameters().cast<bool>())) return;
  const py::gil_scoped_release no_gil;
  core_->model->course().interrupt(fmt::format("{} (in backward of {})", cause, name_));
}

void Model::before_write() {
  if (has_read_) before_update();
}

void Model::before_update() {
  if (in_end_) return;  // a hook on a gradient: all ranks have ended their backward
  has_read_ = false;
  try {
    const std::string_view call = core_->transport->call();
    const Said said(core_->model->course(), call.empty() ? "an update of parameters" : call);
    recover();
    core_->model->course().finish_backward();
    barrier(*core_->transport, "an update of parameters");
    if (written_outside()) {
      take_written();
      remember_versions();
    }
  } catch (const std::exception& error) {
    core_->model->course().interrupt(error.what());
    throw;
  }
}

std::map<std::string, int64_t> Model::memory() const {
  std::map<std::string, int64_t> bytes;
  for (int kind = 0; kind < kMemoryKinds; ++kind) {
    const auto which = static_cast<MemoryKind>(kind);
    bytes[std::string(name_of(which))] = core_->ledger.total(which);
  }
  return bytes;
}

}  // namespace sherd::python
