// Trains a model sharded, and the same model plain with each rank's gradients apart and summed in the canonical order:
// both must end with the same bits.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>

#include "sherd/base/fnv.h"
#include "sherd/engine/engine.h"
#include "sherd/optim/update_rule.h"
#include "sherd/shard/reduction.h"
#include "tests/shard/toy_groups.h"
#include "tests/shard/toy_model.h"
#include "tests/support/ranks.h"

namespace sherd::testing {

inline std::vector<RankCase> training_cases() {
  return {{Kind::threads, 1}, {Kind::threads, 2}, {Kind::host, 2}, {Kind::gloo, 2},
          {Kind::threads, 3}, {Kind::host, 3},    {Kind::host, 4}, {Kind::threads, 4}};
}

/// Clips so low that every step does.
inline EngineOptions clipping(std::string strategy = "zero3") {
  EngineOptions options;
  options.strategy = std::move(strategy);
  options.clip = 1e-3;
  return options;
}

inline at::Tensor training_input(int rank, int step, at::IntArrayRef sizes = {5, 6}) {
  at::Tensor x = at::empty(sizes);
  float* data = x.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) data[i] = std::sin(static_cast<float>(i * (rank + 2) + 17 * step));
  return x;
}

/// The model's parameters by their first names: a tied one once.
inline std::vector<std::pair<std::string, at::Tensor>> parameters_once(torch::nn::Module& module) {
  std::vector<std::pair<std::string, at::Tensor>> once;
  for (const auto& item : module.named_parameters())
    if (std::none_of(once.begin(), once.end(), [&](const auto& p) { return p.second.is_same(item.value()); }))
      once.emplace_back(item.key(), item.value());
  return once;
}

/// A parameter as an unsharded optimizer sees it.
struct PlainParameter {
  std::string name;
  at::Tensor parameter;  // the model's own
  at::ScalarType reduce = at::kFloat;
  UpdatePiece piece;    // all of it, without a gradient
  bool matrix = false;  // of Muon
};

/// The rules that update a plain model.
struct PlainRules {
  explicit PlainRules(const EngineOptions& options) : rule(make_update_rule(options.update)) {
    if (options.muon) muon.emplace(*options.muon);
  }
  void update(const PlainParameter& p, const Hyperparameters& values, const UpdateTime& time) const {
    if (!p.matrix) return rule->update(p.piece, values, time);
    const int64_t rows = p.parameter.size(0), columns = p.parameter.size(1);
    const at::Tensor direction = muon->direction(p.piece, time).view({rows, columns});
    muon->update_matrix(p.piece, muon->orthogonal(direction).view(-1), rows, columns, values, time);
  }
  std::unique_ptr<UpdateRule> rule;
  std::optional<MuonRule> muon;
};

inline std::vector<PlainParameter> plain_parameters(torch::nn::Module& model, const EngineOptions& options,
                                                    const PlainRules& rules) {
  std::vector<PlainParameter> all;
  for (const auto& [name, parameter] : parameters_once(model)) {
    const auto& precision = options.precision;
    const bool wide = precision && precision->keeps_fp32(name);
    const at::ScalarType own = parameter.scalar_type();
    const at::ScalarType compute = wide ? at::kFloat : precision ? precision->compute : own;
    const at::ScalarType storage = wide ? at::kFloat : precision ? precision->storage : own;
    const at::Tensor values = parameter.detach().to(at::kFloat).reshape(-1).clone();
    const int64_t rows = parameter.dim() == 0 ? 1 : parameter.size(0);
    PlainParameter plain{name, parameter, at::kFloat, {at::empty({values.numel()}, storage), {}, {}}};
    if (precision && !wide) plain.reduce = precision->reduce;
    if (precision && storage != at::kFloat) plain.piece.master = precision->master;
    plain.matrix = rules.muon && parameter.dim() == 2 && !any_glob_matches(options.not_muon, name);
    const UpdateRule& rule = plain.matrix ? static_cast<const UpdateRule&>(*rules.muon) : *rules.rule;
    const bool eight =
        !plain.matrix && options.moments == MomentType::eight_bits && fits_eight_bits(rows, values.numel() / rows, 1);
    for (const StateTensor& state :
         rule.state({values.numel(), storage, eight ? MomentType::eight_bits : MomentType::fp32, plain.piece.master}))
      plain.piece.state.push_back(at::zeros({state.elements}, state.type));
    Fnv key;
    key.add(name);
    plain.piece.key = key.value();
    if (parameter.requires_grad()) {
      set_values(plain.piece, values);
    } else {
      plain.piece.parameter.copy_(values);
    }
    plain.parameter.set_data(plain.piece.parameter.to(compute).view(parameter.sizes()));
    all.push_back(plain);
  }
  return all;
}

/// loss(model, rank, step) -> the rank's loss in that step.
template <class Model, class Loss>
Values train_plain(Model& model, const EngineOptions& options, int ranks, int steps, Loss loss) {
  at::set_num_threads(1);
  const PlainRules rules(options);
  std::vector<PlainParameter> parameters = plain_parameters(model, options, rules);
  for (int step = 0; step < steps; ++step) {
    std::map<std::string, std::vector<at::Tensor>> gradients;
    for (int rank = 0; rank < ranks; ++rank) {
      model.zero_grad();
      loss(model, rank, step).backward();
      for (const auto& p : parameters) {
        if (!p.parameter.requires_grad()) continue;
        const at::Tensor& grad = p.parameter.grad();
        const at::Tensor defined = grad.defined() ? grad : at::zeros(p.parameter.sizes());
        gradients[p.name].push_back(defined.to(p.reduce).contiguous().view(-1).clone());
      }
    }
    const at::NoGradGuard no_grad;
    ExactSum squares;
    for (auto& p : parameters) {
      if (!p.parameter.requires_grad()) continue;
      const at::ScalarType kept = options.summing == Summing::in_place ? p.reduce : at::kFloat;
      p.piece.gradient = at::empty({p.parameter.numel()}, kept);
      canonical_sum(gradients.at(p.name), p.piece.gradient, Round::first);
      add_squares(lay_out("", {{p.name, p.parameter.sizes().vec()}}, 1), 0, p.piece.gradient, squares);
    }
    const double norm = std::sqrt(squares.value());
    const double gradient_scale = options.clip ? std::min(1.0, *options.clip / (norm + 1e-6)) : 1.0;
    for (auto& p : parameters) {
      if (!p.parameter.requires_grad()) continue;
      rules.update(p, options.optimizer, {step + 1, 1.0, gradient_scale});
      p.parameter.detach().copy_(p.piece.parameter.view(p.parameter.sizes()));
    }
  }
  Values result;
  for (const auto& item : model.named_parameters()) {
    const auto p = std::find_if(parameters.begin(), parameters.end(),
                                [&](const auto& each) { return each.parameter.is_same(item.value()); });
    result[item.key()] = p->parameter.requires_grad() ? values_of(p->piece).clone() : p->piece.parameter.to(at::kFloat);
  }
  return result;
}

/// Holds this rank's rows against the plain model's.
inline void expect_rows(Engine& engine, const Values& expected) {
  for (const auto& shard : engine.master_shards()) {
    const at::Tensor rows =
        expected.at(shard.fqn).view(-1).narrow(0, shard.rows.first * shard.row_elements, shard.values.numel());
    EXPECT_TRUE(at::equal(shard.values, rows)) << shard.fqn << " on rank " << engine.transport().rank() << " of "
                                               << engine.transport().size() << ", " << engine.transport().name();
  }
}

/// Trains both from the same start. `make_sharded` makes the model of units, `make_plain` the one without.
template <class MakePlain, class MakeSharded, class Loss>
void expect_same_training(const RankCase& c, const EngineOptions& options, MakePlain make_plain,
                          MakeSharded make_sharded, Loss loss, int steps = 3) {
  const auto plain = make_plain();
  Values start;
  for (const auto& item : plain->named_parameters()) start[item.key()] = item.value().detach().to(at::kFloat).clone();
  const Values expected = train_plain(*plain, options, c.ranks, steps, loss);
  run_ranks(c.ranks, c.kind, [&](std::shared_ptr<Transport> transport) {
    const auto model = make_sharded();
    Engine engine(model, transport, options, source_of(start));
    for (int step = 0; step < steps; ++step) {
      engine.backward(engine.forward([&] { return loss(*model, transport->rank(), step); }));
      engine.step();
    }
    expect_rows(engine, expected);
  });
}

}  // namespace sherd::testing
