// What an optimizer does to a piece of a parameter: the rows of a shard, or any range of them.
//
// A rule says which tensors it keeps (each as large as the parameters, zero-filled before the first step); the caller
// holds them and lends views. Updates are elementwise, so pieces may be cut anywhere and split over threads: on the CPU
// the bits depend on neither.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "sherd/optim/optim_groups.h"

namespace sherd {

enum class Nesterov { no, yes };

/// Which rule, and what holds for all parameters alike (Hyperparameters holds what may differ).
struct UpdateRuleOptions {
  enum class Kind { adamw, adam, sgd };  // torch.optim's AdamW, Adam (decay added to the gradient) and SGD (the same)
  Kind kind = Kind::adamw;
  double momentum = 0.0;  // sgd only; 0: no state at all
  Nesterov nesterov = Nesterov::no;

  /// Throws ConfigError.
  void validate() const;
};

/// adamw, adam or sgd by name. Throws ConfigError.
UpdateRuleOptions::Kind update_kind(std::string_view name);

/// Views lent by the caller: 1-D, contiguous, fp32, of one length and device. The gradient is only read.
struct UpdatePiece {
  at::Tensor parameter, gradient;
  std::vector<at::Tensor> state;  // in the order of state_names()
};

/// When: `step` counts from 1; the gradient is multiplied with `gradient_scale` (clipping) on the fly.
struct UpdateTime {
  int64_t step = 1;
  double lr_scale = 1;
  double gradient_scale = 1;
};

class UpdateRule {
 public:
  virtual ~UpdateRule() = default;

  /// The tensors that the rule keeps, by torch's names for them.
  virtual std::span<const std::string_view> state_names() const = 0;

  /// The same for parameters and gradients of any floating type: computed in fp32, and rounded.
  void update_rounding(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const;

  /// One update in place. On the CPU a vectorised pass without allocation on this thread's torch threads; elsewhere
  /// update_by_aten().
  void update(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const;

  /// The same mathematics by ATen operators, on any device; up to two temporaries of the piece's size. Equal to the
  /// kernel up to rounding.
  void update_by_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const;

 protected:
  static constexpr size_t kMostStates = 2;
  struct Spans {
    int64_t n;
    const float* gradient;
    float* parameter;
    std::array<float*, kMostStates> state;
  };
  virtual void run_kernel(const Spans& spans, const Hyperparameters& h, const UpdateTime& time) const = 0;
  virtual void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const = 0;

 private:
  void check(const UpdatePiece& piece, const UpdateTime& time) const;
};

/// Throws ConfigError.
std::unique_ptr<UpdateRule> make_update_rule(const UpdateRuleOptions& options);

}  // namespace sherd
