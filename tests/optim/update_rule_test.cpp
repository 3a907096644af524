#include "sherd/optim/update_rule.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "tests/data/expect_config_error.h"

namespace sherd {
namespace {

using RuleKind = UpdateRuleOptions::Kind;
constexpr Hyperparameters kValues{.lr = 2e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
const std::vector<UpdateRuleOptions> kRules = {{RuleKind::adamw}, {RuleKind::adam},
                                               {RuleKind::sgd},   {RuleKind::sgd, 0.9},
                                               {RuleKind::lion},  {RuleKind::sgd, 0.9, Nesterov::yes}};

std::string name_of(const UpdateRuleOptions& options) {
  return fmt::format("kind {} momentum {} nesterov {}", static_cast<int>(options.kind), options.momentum,
                     options.nesterov == Nesterov::yes);
}

/// Runs the body once for each rule.
template <class Body>
void for_each_rule(const Body& body) {
  for (const auto& options : kRules) {
    SCOPED_TRACE(name_of(options));
    body(*make_update_rule(options), options);
  }
}

UpdatePiece make_piece(const UpdateRule& rule, int64_t n) {
  UpdatePiece piece{at::randn({n}), at::randn({n}), {}};
  for (const StateTensor& state : rule.state({.elements = n}))
    piece.state.push_back(at::zeros({state.elements}, state.type));
  return piece;
}

UpdatePiece clone(const UpdatePiece& piece) {
  UpdatePiece copy{piece.parameter.clone(), piece.gradient.clone(), {}};
  for (const auto& tensor : piece.state) copy.state.push_back(tensor.clone());
  return copy;
}

UpdatePiece part_of(const UpdatePiece& piece, int64_t begin, int64_t end) {
  const auto part = [&](const at::Tensor& tensor) { return tensor.narrow(0, begin, end - begin); };
  UpdatePiece cut{part(piece.parameter), part(piece.gradient), {}};
  for (const auto& tensor : piece.state) cut.state.push_back(part(tensor));
  return cut;
}

bool same_bits(const UpdatePiece& a, const UpdatePiece& b) {
  bool same = at::equal(a.parameter, b.parameter);
  for (size_t k = 0; k < a.state.size(); ++k) same = same && at::equal(a.state[k], b.state[k]);
  return same;
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == 0 ? 0.0 : (a - b).abs().max().item<double>();
}

/// torch's own fused kernel, as torch.optim calls it.
void torch_update(const UpdatePiece& piece, const UpdateRuleOptions& options, const UpdateTime& time) {
  if (piece.parameter.numel() == 0 || options.kind == RuleKind::lion) return;
  const double lr = kValues.lr * time.lr_scale;
  const at::Tensor gradient = at::mul(piece.gradient, time.gradient_scale);
  const at::Tensor step = at::zeros({}).fill_(static_cast<double>(time.step));
  const auto adam = [&](auto fused) {
    fused({piece.parameter}, {gradient}, {piece.state[0]}, {piece.state[1]}, {}, {step}, lr, kValues.beta1,
          kValues.beta2, kValues.weight_decay, kValues.eps, false, false, {}, {});
  };
  using Fused = void (*)(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                         double, double, double, double, double, bool, bool, const std::optional<at::Tensor>&,
                         const std::optional<at::Tensor>&);
  if (options.kind == RuleKind::adamw) return adam(static_cast<Fused>(at::_fused_adamw_));
  if (options.kind == RuleKind::adam) return adam(static_cast<Fused>(at::_fused_adam_));
  at::_fused_sgd_({piece.parameter}, {gradient}, options.momentum == 0 ? at::TensorList() : at::TensorList(piece.state),
                  kValues.weight_decay, options.momentum, lr, /*dampening=*/0.0, options.nesterov == Nesterov::yes,
                  /*maximize=*/false, /*is_first_step=*/time.step == 1);
}

// Ten steps with changing gradients of about 1: moments are of that size, a momentum buffer of up to 10, and a step
// moves a parameter by about lr, so that a few roundings of |p| < 5 remain.
void expect_close(const UpdatePiece& a, const UpdatePiece& b) {
  EXPECT_LE(max_difference(a.parameter, b.parameter), 3e-6);
  for (size_t k = 0; k < a.state.size(); ++k) EXPECT_LE(max_difference(a.state[k], b.state[k]), 6e-6);
}

TEST(UpdateRule, KernelAtenAndTorchFusedAgree) {
  for_each_rule([](const UpdateRule& rule, const UpdateRuleOptions& options) {
    for (const int64_t n : {0, 1, 3, 7, 15, 16, 17, 31, 33, 1000, 4097}) {
      UpdatePiece kernel = make_piece(rule, n), aten = clone(kernel), fused = clone(kernel);
      for (int64_t k = 1; k <= 10; ++k) {
        kernel.gradient = aten.gradient = fused.gradient = at::randn({n});
        const UpdateTime time{k, 0.1 * static_cast<double>(k), 0.4};
        rule.update(kernel, kValues, time);
        rule.update_by_aten(aten, kValues, time);
        torch_update(fused, options, time);
      }
      expect_close(kernel, aten);
      if (options.kind != RuleKind::lion) expect_close(kernel, fused);  // torch has none
    }
  });
}

TEST(UpdateRule, KeepsOnlyWhatItNeeds) {
  const auto names = [](const UpdateRuleOptions& options) {
    const auto rule = make_update_rule(options);
    std::vector<std::string> found;
    for (const StateTensor& state : rule->state({.elements = 8})) found.emplace_back(state.name);
    return found;
  };
  const std::vector<std::string> moments = {"exp_avg", "exp_avg_sq"}, momentum = {"momentum_buffer"};
  EXPECT_EQ(names({RuleKind::adamw}), moments);
  EXPECT_EQ(names({RuleKind::adam}), moments);
  EXPECT_TRUE(names({RuleKind::sgd}).empty());
  EXPECT_EQ(names({RuleKind::sgd, 0.5}), momentum);
  EXPECT_EQ(names({RuleKind::lion}), std::vector<std::string>{"exp_avg"});
}

TEST(UpdateRule, PiecesGiveTheBitsOfTheWhole) {
  for_each_rule([](const UpdateRule& rule, const UpdateRuleOptions&) {
    const int64_t n = 1003;
    UpdatePiece whole = make_piece(rule, n), cut = clone(whole);
    rule.update(whole, kValues, {});
    int64_t begin = 0;
    for (const int64_t end : std::vector<int64_t>{0, 1, 334, 668, n}) {
      rule.update(part_of(cut, begin, end), kValues, {});
      begin = end;
    }
    EXPECT_TRUE(same_bits(whole, cut));
  });
}

TEST(UpdateRule, ThreadsGiveTheBitsOfOne) {
  const int before = at::get_num_threads();
  for_each_rule([](const UpdateRule& rule, const UpdateRuleOptions&) {
    const UpdatePiece start = make_piece(rule, 300001);
    at::set_num_threads(1);
    const UpdatePiece one = clone(start);
    rule.update(one, kValues, {});
    for (const int threads : {2, 3, 5}) {
      at::set_num_threads(threads);
      const UpdatePiece several = clone(start);
      rule.update(several, kValues, {});
      EXPECT_TRUE(same_bits(one, several)) << threads;
    }
  });
  at::set_num_threads(before);
}

using Update = void (UpdateRule::*)(const UpdatePiece&, const Hyperparameters&, const UpdateTime&) const;
constexpr Update kUpdates[] = {&UpdateRule::update, &UpdateRule::update_by_aten};

TEST(UpdateRule, LeavesTheGradientAlone) {
  for_each_rule([](const UpdateRule& rule, const UpdateRuleOptions&) {
    for (const Update update : kUpdates) {
      const UpdatePiece piece = make_piece(rule, 100);
      const at::Tensor before = piece.gradient.clone();
      (rule.*update)(piece, kValues, {1, 1.0, 0.5});
      EXPECT_TRUE(at::equal(piece.gradient, before));
    }
  });
}

TEST(UpdateRule, WorksOnLeavesThatRequireGrad) {
  for_each_rule([](const UpdateRule& rule, const UpdateRuleOptions&) {
    for (const Update update : kUpdates) {
      const UpdatePiece piece = make_piece(rule, 100);
      const at::Tensor before = piece.parameter.clone();
      piece.parameter.requires_grad_();
      (rule.*update)(piece, kValues, {});
      EXPECT_GT(max_difference(piece.parameter.detach(), before), 1e-3);
      EXPECT_TRUE(piece.parameter.is_leaf());
    }
  });
}

TEST(UpdateRule, PiecesOfTheWrongFormAreBrokenInvariants) {
  const auto rule = make_update_rule({});
  for (const Update update : kUpdates) {
    const auto expect_refused = [&](const UpdatePiece& piece) {
      EXPECT_THROW(((*rule).*update)(piece, kValues, {}), std::logic_error);
    };
    const UpdatePiece good = make_piece(*rule, 8);
    EXPECT_NO_THROW(((*rule).*update)(good, kValues, {}));
    EXPECT_THROW(((*rule).*update)(good, kValues, {.step = 0}), std::logic_error);  // steps count from 1
    expect_refused({good.parameter, at::zeros({7}), good.state});
    expect_refused({good.parameter, at::Tensor(), good.state});
    expect_refused({at::Tensor(), good.gradient, good.state});
    expect_refused({good.parameter, at::zeros({8}, at::kDouble), good.state});
    expect_refused({good.parameter, at::zeros({16}).slice(0, 0, 16, 2), good.state});
    expect_refused({good.parameter, good.gradient, {good.state[0]}});
    expect_refused({at::zeros({2, 4}), at::zeros({2, 4}), {at::zeros({2, 4}), at::zeros({2, 4})}});
  }
}

TEST(UpdateRule, ImpossibleOptionsAreConfigErrors) {
  expect_config_error([] { make_update_rule({RuleKind::sgd, 1.0}); }, {"optimizer.momentum", "got 1", "try 0.9"});
  expect_config_error([] { make_update_rule({RuleKind::sgd, -0.1}); }, {"optimizer.momentum", "got -0.1"});
  expect_config_error([] { make_update_rule({RuleKind::adam, 0.9}); }, {"optimizer.momentum", "sgd only"});
  expect_config_error(
      [] {
        make_update_rule({RuleKind::sgd, 0.0, Nesterov::yes});
      },
      {"optimizer.nesterov", "momentum"});
}

}  // namespace
}  // namespace sherd
