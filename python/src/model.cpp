#include "python/src/model.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/variable.h>

#include <cmath>
#include <set>
#include <unordered_map>

#include "sherd/base/error.h"
#include "sherd/shard/hooks.h"
#include "sherd/shard/row_norm.h"

namespace sherd::python {
namespace {

constexpr size_t kBits = 48;  // flags that travel in one double

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

// This rank's rows of a gradient of `shard`, however it came about. Collective where it is spread otherwise.
at::Tensor rows_of_gradient(const py::object& gradient, const at::Tensor& shard) {
  return py::module_::import("sherd.rows").attr("rows_of_gradient")(gradient, shard).cast<at::Tensor>();
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

}  // namespace

Model::Model(std::vector<UnitPlan> plans, std::shared_ptr<Transport> transport, const ModelOptions& options,
             MakeGradient make_gradient)
    : core_(std::make_shared<Core>()),
      make_gradient_(std::move(make_gradient)),
      replicate_(options.replicate),
      name_(options.name) {
  ShardOptions shard;
  shard.strategy = find_strategy(options.strategy);
  // The user's optimizer sees this rank's rows only: where moments could be whole they are sharded all the same.
  shard.strategy.optimizer = Spread::sharded;
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
  for (const auto& unit : core_->units) {
    unit->belong_to(this);
    for (const auto* group : unit->groups())
      for (Face& face : faces_[group->index()]) face.unit = unit.get();
  }
  model.publish();
  for (size_t g = 0; sees_whole_ && g < faces_.size(); ++g) show_outside(g);
  remember_versions();
  model.observe_backward({[this] { begin_backward(); }, [this] { end_backward(); },
                          [this] { core_->model->interrupt("an exception ended its backward"); }, with_python_types});
}

Model::~Model() {
  core_->model->observe_backward({});
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

void Model::make_gradients(size_t g) {
  const ParamGroup& group = *core_->model->groups()[g];
  const at::Tensor all = core_->model->store().gradient(g);
  for (size_t p = 0; p < faces_[g].size(); ++p) {
    Face& face = faces_[g][p];
    const at::Tensor& local = face.parameter.local;
    face.buffer.reset();
    face.gradient = {};
    face.references = 0;
    if (role(g, p) == Role::frozen) continue;
    face.buffer = all.narrow(0, group.gradient_layout().parameters[p].shard_offset, local.numel()).view(local.sizes());
    if (all.scalar_type() != local.scalar_type()) continue;
    face.gradient = make_gradient_(face.buffer, face.parameter.shard);
    face.references = Py_REFCNT(face.gradient.ptr());
  }
  storage_users_[g] = all.defined() ? all.storage().use_count() : 0;
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
  static PyObject* const local = PyUnicode_InternFromString("_local_tensor");  // outlives the interpreter
  bool found = false;
  const py::gil_scoped_acquire gil;
  for (auto& faces : faces_) {
    for (Face& face : faces) {
      const py::object now = face.shard.attr(py::handle(local));
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
  core_->model->publish();
  updated_ = false;
  remember_versions();
}

// An interrupted step may have ended its backward on some ranks only: all exchange what has changed.
void Model::recover() {
  if (!core_->model->recover()) return;
  has_reduced_ = true;
  holding_ = false;
  end_leaving_out();
}

void Model::failed_in_forward(const std::string& unit, const std::string& cause) {
  if (failure_.empty()) failure_ = fmt::format("{} (in the forward of {} of {})", cause, title_of_unit(unit), name_);
  if (open_ == 0) core_->model->interrupt(std::exchange(failure_, {}));
}

void Model::before_write() {
  if (has_read_) before_update();
}

void Model::before_update() {
  if (in_end_) return;  // a hook on a gradient: all ranks have ended their backward
  has_read_ = false;
  try {
    const std::string_view call = core_->transport->call();
    const Said said(*core_->model, call.empty() ? "an update of parameters" : call);
    recover();
    core_->model->finish_backward();
    barrier(*core_->transport, "an update of parameters");
    if (written_outside()) {
      take_written();
      remember_versions();
    }
  } catch (const std::exception& error) {
    core_->model->interrupt(error.what());
    throw;
  }
}

// See [Note: Windows].
void Model::begin_backward() {
  follow_in_backward();
  if (core_->model->gradients() == Gradients::hold) return;
  const py::gil_scoped_acquire gil;
  for (size_t g = 0; g < faces_.size(); ++g) {
    if (!core_->model->groups()[g]->takes_part() || core_->model->holds(g)) continue;
    bool fresh = true;
    for (size_t p = 0; p < faces_[g].size(); ++p)
      fresh = fresh && !(takes_part(g, p) && faces_[g][p].parameter.shard.grad().defined());
    if (fresh) {
      core_->model->forget_gradients(g);
      if (held_elsewhere(g)) renew(g);
    } else {
      for (size_t p = 0; p < faces_[g].size(); ++p)
        if (takes_part(g, p)) take_over(faces_[g][p]);
      core_->model->keep_gradients(g);
    }
  }
}

void Model::renew(size_t g) {
  core_->model->store().renew_gradient(g);
  make_gradients(g);
}

bool Model::held_elsewhere(size_t g) const {
  if (core_->model->store().gradient(g).storage().use_count() > storage_users_[g]) return true;
  return std::any_of(faces_[g].begin(), faces_[g].end(), [](const Face& face) {
    return face.gradient && face.references > 0 && Py_REFCNT(face.gradient.ptr()) > face.references;
  });
}

at::Tensor Model::local_gradient(const Face& face) const {
  const py::object gradient = py::cast(face.parameter.shard.grad());
  return face.references > 0 && gradient.is(face.gradient) ? face.buffer
                                                           : rows_of_gradient(gradient, face.parameter.shard);
}

double Model::gradient_norm(double order) {
  RowNorm norm(order);
  for (const auto& faces : faces_) {
    for (const Face& face : faces) {
      const bool counted_elsewhere = face.parameter.copies == Copies::each_rank && core_->model->store().index() != 0;
      if (!face.parameter.shard.grad().defined() || counted_elsewhere || face.parameter.local.numel() == 0) continue;
      const at::Tensor local = local_gradient(face).detach();
      norm.add(local, local.dim() == 0 ? 1 : local.numel() / local.size(0));
    }
  }
  const py::gil_scoped_release no_gil;
  const Said said(*core_->model, "a gradient norm");
  const std::vector<double> all = core_->transport->exchange_for("a gradient norm", norm.parts());
  // Over one replica: the others have the same.
  return norm.of({all.data(), all.size() / static_cast<size_t>(replicate_)});
}

std::map<std::string, int64_t> Model::memory() const {
  std::map<std::string, int64_t> bytes;
  for (int kind = 0; kind < kMemoryKinds; ++kind) {
    const auto which = static_cast<MemoryKind>(kind);
    bytes[std::string(name_of(which))] = core_->ledger.total(which);
  }
  return bytes;
}

// What .grad holds becomes what the next reduction adds to; but a hook is to see the new gradient alone.
void Model::take_over(Face& face) {
  const at::NoGradGuard no_grad;
  const at::Tensor& shard = face.parameter.shard;
  const at::Tensor& gradient = shard.grad();
  face.had = gradient.defined();
  const bool hooked = !torch::autograd::impl::hooks(shard).empty() || !face.unit->reduced_hook().is_none();
  if (face.had && hooked) face.before = local_gradient(face).clone();
  if (!face.had || hooked) {
    face.buffer.zero_();
  } else if (!face.gradient || !py::cast(gradient).is(face.gradient)) {
    face.buffer.copy_(local_gradient(face));
  }
  // Until this backward is over, what autograd itself adds (the parameter's rows used as they are) comes here.
  if (core_->model->gradients() == Gradients::reduce || replicate_ == 1) shard.mutable_grad().reset();
}

// A parameter that no rank has used keeps no gradient, as without sharding: optimizers then leave it alone.
std::vector<bool> Model::seen_by_any_rank() {
  ShardedModel& model = *core_->model;
  std::vector<double> mine{model.schedule_hash()};
  size_t count = 0;
  for (size_t g = 0; g < faces_.size(); ++g) {
    for (size_t p = 0; p < faces_[g].size(); ++p, ++count) {
      if (count % kBits == 0) mine.push_back(0);
      if (model.has_seen(g, p)) mine.back() += static_cast<double>(uint64_t{1} << (count % kBits));
    }
  }
  const std::vector<double> all = core_->transport->exchange_for("the end of a backward", mine);
  std::vector<double> hashes;
  std::vector<bool> seen(count, false);
  for (size_t rank = 0; rank * mine.size() < all.size(); ++rank) {
    const double* words = &all[rank * mine.size()];
    hashes.push_back(words[0]);
    for (size_t i = 0; i < count; ++i)
      if ((static_cast<uint64_t>(words[1 + i / kBits]) >> (i % kBits) & 1) != 0) seen[i] = true;
  }
  model.compare_schedules(hashes);
  model.forget_schedule();
  return seen;
}

void Model::end_backward() {
  end_leaving_out();
  holding_ = true;
  if (core_->model->gradients() == Gradients::hold) return;
  const std::vector<bool> seen = seen_by_any_rank();
  has_reduced_ = true;
  has_read_ = false;
  if (core_->model->gradients() == Gradients::reduce_shard_axis && replicate_ > 1) return;
  holding_ = false;
  in_end_ = true;
  const auto leave = std::unique_ptr<bool, void (*)(bool*)>(&in_end_, [](bool* inside) { *inside = false; });
  const py::gil_scoped_acquire gil;
  call_reduced_hooks(seen);
  size_t i = 0;
  for (size_t g = 0; g < faces_.size(); ++g) {
    for (size_t p = 0; p < faces_[g].size(); ++p, ++i) {
      Face& face = faces_[g][p];
      if (takes_part(g, p) && !core_->model->holds(g) && (seen[i] || face.had || face.parameter.shard.grad().defined()))
        show_gradient(face);
    }
  }
}

// Of units that any rank has used.
void Model::call_reduced_hooks(const std::vector<bool>& seen) {
  auto first = seen.begin();
  for (size_t g = 0; g < faces_.size(); ++g) {
    const auto end = first + static_cast<std::ptrdiff_t>(faces_[g].size());
    const py::object& hook = faces_[g].front().unit->reduced_hook();
    if (!hook.is_none() && std::count(first, end, true) > 0) hook(core_->model->store().gradient(g));
    first = end;
  }
}

void Model::show_gradient(Face& face) {
  const at::Tensor& shard = face.parameter.shard;
  const bool rounded = !face.references;
  const auto make = [&] {
    if (rounded) face.gradient = make_gradient_(face.buffer.to(face.parameter.local.scalar_type()), shard);
  };
  make();
  if (const auto& hooks = torch::autograd::impl::hooks(shard); !hooks.empty()) {
    torch::autograd::variable_list gradients{face.gradient.cast<at::Tensor>()};
    for (const auto& hook : hooks) gradients = (*hook)(gradients);
    face.buffer.copy_(rows_of_gradient(py::cast(gradients[0]), shard));
    make();
  }
  if (face.before.defined()) {
    face.buffer.add_(face.before);
    make();
  }
  if (shard.grad().defined()) {
    face.buffer.add_(local_gradient(face));
    make();
  }
  face.before.reset();
  face.had = false;
  shard.mutable_grad() = face.gradient.cast<at::Tensor>();
  if (const auto& hook = torch::autograd::impl::post_acc_grad_hooks(shard)) (*hook)(shard);
}

std::vector<py::object> Model::reduce(const std::vector<at::Tensor>& shards,
                                      const std::vector<std::optional<at::Tensor>>& gradients) {
  {
    const py::gil_scoped_release no_gil;
    recover();
  }
  ShardedModel& model = *core_->model;
  std::unordered_map<const at::TensorImpl*, size_t> wanted;
  for (size_t i = 0; i < shards.size(); ++i) wanted[shards[i].unsafeGetTensorImpl()] = i;
  std::vector<at::Tensor> held;  // by a backward that has not reduced
  const auto each = [&](const auto& call) {
    for (size_t g = 0; g < faces_.size(); ++g)
      for (size_t p = 0; p < faces_[g].size(); ++p) {
        const auto found = wanted.find(faces_[g][p].parameter.shard.unsafeGetTensorImpl());
        call(g, p, faces_[g][p], found == wanted.end() ? -1 : static_cast<int64_t>(found->second));
      }
  };
  std::set<size_t> groups;
  each([&](size_t g, size_t p, Face& face, int64_t i) {
    if (i >= 0 && takes_part(g, p)) groups.insert(g);
    at::Tensor& gradient = face.parameter.whole.mutable_grad();
    held.push_back(std::exchange(gradient, at::Tensor()));
    if (i >= 0 && gradients[static_cast<size_t>(i)]) gradient = *gradients[static_cast<size_t>(i)];
  });
  // Buffers of their own: those that there are may be in .grad, and what is returned belongs to the caller.
  const auto renew_all = [&] {
    for (const size_t g : groups) renew(g);
  };
  renew_all();
  for (size_t g = 0; g < faces_.size(); ++g) {
    if (groups.contains(g)) {
      model.forget_gradients(g);
    } else {
      model.keep_gradients(g);
    }
  }
  std::vector<bool> seen;
  {
    const py::gil_scoped_release no_gil;
    model.reduce_held();
    seen = seen_by_any_rank();
  }
  std::vector<py::object> reduced(shards.size(), py::none());
  size_t count = 0;
  each([&](size_t, size_t, Face& face, int64_t i) {
    if (i >= 0 && seen[count] && face.buffer.defined())
      reduced[static_cast<size_t>(i)] =
          make_gradient_(face.buffer.to(face.parameter.local.scalar_type()), face.parameter.shard);
    face.parameter.whole.mutable_grad() = held[count++];
  });
  renew_all();
  return reduced;
}

}  // namespace sherd::python
