#include "sherd/optim/update_rule.h"

#include <ATen/core/grad_mode.h>

#include "sherd/base/error.h"
#include "sherd/kernels/parallel.h"
#include "sherd/optim/adam.h"
#include "sherd/optim/sgd.h"

namespace sherd {

UpdateRuleOptions::Kind update_kind(std::string_view name) {
  using Kind = UpdateRuleOptions::Kind;
  if (name == "adamw") return Kind::adamw;
  if (name == "adam") return Kind::adam;
  if (name == "sgd") return Kind::sgd;
  config_error("optimizer.type", "got '{}', expected adamw, adam or sgd; try adamw", name);
}

void UpdateRuleOptions::validate() const {
  if (!(momentum >= 0.0 && momentum < 1.0))
    config_error("optimizer.momentum", "got {}, expected 0 <= momentum < 1; try 0.9", momentum);
  if (momentum > 0 && kind != Kind::sgd)
    config_error("optimizer.momentum", "got {} without sgd, expected it with sgd only; try betas", momentum);
  if (nesterov == Nesterov::yes && momentum == 0)
    config_error("optimizer.nesterov",
                 "got true without momentum, expected it with sgd and momentum; try momentum 0.9");
}

std::unique_ptr<UpdateRule> make_update_rule(const UpdateRuleOptions& options) {
  options.validate();
  switch (options.kind) {
    case UpdateRuleOptions::Kind::adamw:
      return std::make_unique<AdamRule>(AdamRule::Decay::decoupled);
    case UpdateRuleOptions::Kind::adam:
      return std::make_unique<AdamRule>(AdamRule::Decay::l2);
    case UpdateRuleOptions::Kind::sgd:
      return std::make_unique<SgdRule>(options.momentum, options.nesterov);
  }
  SHERD_CHECK(false);
}

void UpdateRule::check(const UpdatePiece& piece, const UpdateTime& time) const {
  SHERD_CHECK(time.step >= 1 && piece.state.size() == state_names().size() && piece.state.size() <= kMostStates);
  const auto check_tensor = [&](const at::Tensor& tensor) {
    SHERD_CHECK(tensor.defined() && tensor.dim() == 1 && tensor.is_contiguous());
    SHERD_CHECK(tensor.scalar_type() == at::kFloat);
    SHERD_CHECK(tensor.numel() == piece.parameter.numel());
    SHERD_CHECK(tensor.device() == piece.parameter.device());
  };
  check_tensor(piece.parameter);
  check_tensor(piece.gradient);
  for (const auto& tensor : piece.state) check_tensor(tensor);
}

void UpdateRule::update_rounding(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  const UpdatePiece wide{piece.parameter.to(at::kFloat), piece.gradient.to(at::kFloat), piece.state};
  update(wide, h, time);
  if (!wide.parameter.is_same(piece.parameter)) piece.parameter.copy_(wide.parameter);
}

void UpdateRule::update(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  if (piece.parameter.defined() && !piece.parameter.is_cpu()) return update_by_aten(piece, h, time);
  check(piece, time);
  constexpr int64_t kGrain = 32768;  // 0.9 MB of traffic: waking a thread costs a tenth of that
  Spans all{0, piece.gradient.const_data_ptr<float>(), piece.parameter.mutable_data_ptr<float>(), {}};
  for (size_t k = 0; k < piece.state.size(); ++k) all.state[k] = piece.state[k].mutable_data_ptr<float>();
  kernels::parallel_ranges(piece.parameter.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Spans part{end - begin, all.gradient + begin, all.parameter + begin, {}};
    for (size_t k = 0; k < piece.state.size(); ++k) part.state[k] = all.state[k] + begin;
    run_kernel(part, h, time);
  });
}

void UpdateRule::update_by_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const {
  check(piece, time);
  const at::NoGradGuard no_grad;
  run_aten(piece, h, time);
}

}  // namespace sherd
