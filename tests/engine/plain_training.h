// Trains a model sharded, and the same model plain with each rank's gradients apart and summed in the canonical order:
// both must end with the same bits.
#pragma once

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

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

/// loss(model, rank, step) -> the rank's loss in that step.
template <class Model, class Loss>
Values train_plain(Model& model, const EngineOptions& options, int ranks, int steps, Loss loss) {
  at::set_num_threads(1);
  const auto rule = make_update_rule(options.update);
  std::map<std::string, std::vector<at::Tensor>> state;
  for (int step = 0; step < steps; ++step) {
    std::map<std::string, std::vector<at::Tensor>> gradients;
    for (int rank = 0; rank < ranks; ++rank) {
      model.zero_grad();
      loss(model, rank, step).backward();
      for (const auto& [name, parameter] : parameters_once(model)) {
        if (!parameter.requires_grad()) continue;
        const at::Tensor& grad = parameter.grad();
        const at::Tensor defined = grad.defined() ? grad.to(at::kFloat) : at::zeros(parameter.sizes());
        gradients[name].push_back(defined.contiguous().view(-1).clone());
      }
    }
    const at::NoGradGuard no_grad;
    std::map<std::string, at::Tensor> sums;
    ExactSum squares;
    for (const auto& [name, parameter] : parameters_once(model)) {
      if (!parameter.requires_grad()) continue;
      const at::Tensor sum = sums[name] = at::empty_like(gradients.at(name)[0]);
      canonical_sum(gradients.at(name), sum, Round::first);
      add_squares(lay_out("", {{name, parameter.sizes().vec()}}, 1), 0, sum, squares);
    }
    const double norm = std::sqrt(squares.value());
    const double gradient_scale = options.clip ? std::min(1.0, *options.clip / (norm + 1e-6)) : 1.0;
    for (const auto& [name, parameter] : parameters_once(model)) {
      if (!parameter.requires_grad()) continue;
      const at::Tensor sum = sums.at(name);
      UpdatePiece piece{parameter.detach().to(at::kFloat).view(-1).clone(), sum, {}};
      for (size_t k = state[name].size(); k < rule->state_names().size(); ++k)
        state[name].push_back(at::zeros_like(sum));
      piece.state = state[name];
      rule->update(piece, options.optimizer, {step + 1, 1.0, gradient_scale});
      parameter.detach().copy_(piece.parameter.view(parameter.sizes()));
    }
  }
  Values result;
  for (const auto& item : model.named_parameters()) result[item.key()] = item.value().detach().to(at::kFloat).clone();
  return result;
}

/// Holds this rank's rows against the plain model's.
inline void expect_rows(Engine& engine, const Values& expected) {
  for (const auto& shard : engine.shards()) {
    const at::Tensor rows =
        expected.at(shard.fqn).view(-1).narrow(0, shard.rows.first * shard.row_elements, shard.values.numel());
    EXPECT_TRUE(at::equal(shard.values.to(at::kFloat), rows))
        << shard.fqn << " on rank " << engine.transport().rank() << " of " << engine.transport().size() << ", "
        << engine.transport().name();
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
