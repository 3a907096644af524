// Which parameters get gradients, as requires_grad changes between steps: model.h, [Note: Freezing].
#include "python/src/model.h"
#include "sherd/base/error.h"
#include "sherd/base/fnv.h"
#include "sherd/shard/hooks.h"

namespace sherd::python {
namespace {

constexpr int kSettled = 4;  // backwards

/// What ranks tell each other at the beginning of a forward.
struct Wish {
  double hash = 0;       // of the parameters that are to get gradients
  bool changed = false;  // rows, on this rank
};

/// As numbers that a double holds exactly.
std::vector<double> packed(const std::vector<bool>& flags) {
  constexpr size_t kBits = 48;
  std::vector<double> words((flags.size() + kBits - 1) / kBits, 0);
  for (size_t i = 0; i < flags.size(); ++i)
    if (flags[i]) words[i / kBits] += static_cast<double>(uint64_t{1} << (i % kBits));
  return words;
}

bool can_be_trained(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble ||
         type == at::kComplexFloat || type == at::kComplexDouble;
}

const char* in_python(bool value) { return value ? "True" : "False"; }

}  // namespace

double hash_of(const std::vector<bool>& flags) {
  Fnv hash;
  for (const bool flag : flags) hash.add(flag ? 1 : 2);
  return hash.as_double();
}

// The user may have changed either of the two faces since ranks last agreed.
bool Model::wants_gradient(size_t g, size_t p) const {
  const Parameter& parameter = faces_[g][p].parameter;
  const bool shard = parameter.shard.requires_grad(), before = role(g, p) == Role::awaited;
  return shard != before ? shard : parameter.whole.requires_grad();
}

// Null where there is none.
const Parameter* Model::first_with_other_requires_grad() const {
  for (size_t g = 0; g < faces_.size(); ++g)
    for (size_t p = 0; p < faces_[g].size(); ++p)
      if (wants_gradient(g, p) != (role(g, p) == Role::awaited)) return &faces_[g][p].parameter;
  return nullptr;
}

std::vector<bool> Model::wanted_gradients() const {
  std::vector<bool> wanted;
  for (size_t g = 0; g < faces_.size(); ++g)
    for (size_t p = 0; p < faces_[g].size(); ++p) wanted.push_back(wants_gradient(g, p));
  return wanted;
}

// True where rows have changed on any rank. Throws where ranks want gradients of different parameters.
bool Model::agree_on_changes(bool mine) {
  const bool others_come = has_reduced_;
  const Parameter* other = first_with_other_requires_grad();
  const Wish wish{other != nullptr ? hash_of(wanted_gradients()) : wanted_hash_, mine || (others_come && aliased_)};
  std::vector<Wish> all;
  try {
    all = core_->transport->exchange(wish, "the beginning of a forward");
  } catch (const FaultError& error) {
    if (others_come) throw;
    fault("shard",
          "got another requires_grad of parameter '{}' on rank {}, expected the same change on all ranks before the "
          "same call: {}; try to freeze and unfreeze on every rank",
          other->fqn, core_->transport->rank(), error.what());
  }
  bool changed = false;
  std::vector<double> hashes;
  for (const Wish& theirs : all) {
    changed = changed || theirs.changed;
    hashes.push_back(theirs.hash);
  }
  compare_wanted(hashes);
  wanted_hash_ = wish.hash;
  return changed;
}

void Model::compare_wanted(std::span<const double> hashes) {
  if (std::all_of(hashes.begin(), hashes.end(), [&](double hash) { return hash == hashes[0]; })) return;
  const std::vector<bool> wanted = wanted_gradients();
  const std::vector<double> mine = packed(wanted);
  const std::vector<double> all = core_->transport->exchange(mine);
  const auto wants = [&](size_t rank, size_t i) {
    constexpr size_t kBits = 48;
    return (static_cast<uint64_t>(all[rank * mine.size() + i / kBits]) >> (i % kBits) & 1) != 0;
  };
  size_t i = 0;
  for (const auto& faces : faces_)
    for (const Face& face : faces) {
      for (size_t rank = 1; rank < hashes.size(); ++rank)
        if (wants(rank, i) != wants(0, i))
          config_error("shard",
                       "got requires_grad={} of parameter '{}' on rank {} and {} on rank 0, expected the same on all "
                       "ranks; try to freeze and unfreeze on every rank",
                       in_python(wants(rank, i)), face.parameter.fqn, rank, in_python(wants(0, i)));
      ++i;
    }
}

void Model::follow_requires_grad() {
  unsettled_ = kSettled;
  const std::vector<bool> wanted = wanted_gradients();
  size_t i = 0;
  for (auto& faces : faces_) {
    for (Face& face : faces) {
      const at::ScalarType type = face.parameter.local.scalar_type();
      if (wanted[i] && !can_be_trained(type))
        config_error("shard",
                     "got requires_grad=True of parameter '{}' of {}, expected fp32, bf16, fp16, fp64, complex64 or "
                     "complex128; try to keep it frozen",
                     face.parameter.fqn, toString(type));
      for (at::Tensor* tensor : {&face.parameter.shard, &face.parameter.whole, &face.parameter.outside})
        if (tensor->defined() && tensor->requires_grad() != wanted[i]) tensor->set_requires_grad(wanted[i]);
      ++i;
    }
  }
  set_roles();
}

// From requires_grad, which all ranks have agreed on.
void Model::set_roles() {
  std::vector<Roles> roles;
  bool changed = false;
  for (size_t g = 0; g < faces_.size(); ++g) {
    roles.emplace_back();
    for (size_t p = 0; p < faces_[g].size(); ++p) {
      const Role before = role(g, p);
      Role now = Role::frozen;
      if (faces_[g][p].parameter.whole.requires_grad()) {
        now = Role::awaited;
      } else if (before >= Role::held && holding_) {
        now = Role::held;
      } else if (before != Role::frozen && unsettled_ > 0) {
        now = Role::idle;
      }
      changed = changed || now != before;
      roles.back().push_back(now);
    }
  }
  if (!changed) return;
  const std::vector<size_t> moved = core_->model->set_roles(roles);
  const py::gil_scoped_acquire gil;
  for (const size_t g : moved) make_gradients(g);
}

// Ranks agree on it when backward comes.
void Model::entering_forward(const UnitState& unit) {
  if (inside_backward()) return;
  if (open_ == 0) {
    const Said said(core_->model->course(), unit.forward());
    return entering_forward();
  }
  if (!at::GradMode::is_enabled()) return;
  for (const ParamGroup* group : unit.groups()) {
    for (size_t p = 0; p < group->parameters().size(); ++p) {
      at::Tensor& whole = faces_[group->index()][p].parameter.whole;
      const bool wants = wants_gradient(group->index(), p);
      if (whole.requires_grad() != wants) whole.set_requires_grad(wants);
    }
  }
}

// As in torch, requires_grad counts as it is when backward comes. What has been frozen since the last forward is left
// out, for which ranks need not agree.
void Model::follow_in_backward() {
  std::vector<at::Tensor> frozen;
  for (size_t g = 0; g < faces_.size(); ++g) {
    for (size_t p = 0; p < faces_[g].size(); ++p) {
      const bool wants = wants_gradient(g, p), awaited = role(g, p) == Role::awaited;
      const at::Tensor& whole = faces_[g][p].parameter.whole;
      if (wants && !awaited) {
        if (core_->transport->size() > 1) agree_on_changes(false);
        return follow_requires_grad();
      }
      if (awaited && !wants && whole.requires_grad()) frozen.push_back(whole);
    }
  }
  left_out_ = std::move(frozen);
  for (at::Tensor& whole : left_out_) whole.set_requires_grad(false);
}

void Model::end_leaving_out() {
  for (const at::Tensor& whole : left_out_) whole.set_requires_grad(true);
  left_out_.clear();
}

}  // namespace sherd::python
