// The gradients of a model: what .grad holds before, during and after a backward. See [Note: Windows].
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <set>
#include <unordered_map>

#include "python/src/model.h"
#include "sherd/step/records.h"
#include "sherd/step/row_norm.h"

namespace sherd::python {
namespace {

constexpr size_t kBits = 48;  // flags that travel in one double

// This rank's rows of a gradient of `shard`, however it came about. Collective where it is spread otherwise.
at::Tensor rows_of_gradient(const py::object& gradient, const at::Tensor& shard) {
  return py::module_::import("sherd.rows").attr("rows_of_gradient")(gradient, shard).cast<at::Tensor>();
}

}  // namespace

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

at::Tensor Model::local_gradient(const Face& face) const {
  const py::object gradient = py::cast(face.parameter.shard.grad());
  return face.references > 0 && gradient.is(face.gradient) ? face.buffer
                                                           : rows_of_gradient(gradient, face.parameter.shard);
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
  const auto parts = exchange_records(*core_->transport, "a gradient norm", norm.part()).records;
  // Over one replica: the others have the same.
  return norm.of(std::span(parts).first(parts.size() / static_cast<size_t>(replicate_)));
}

}  // namespace sherd::python
