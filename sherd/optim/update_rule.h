// What an optimizer does to a piece of a parameter: the rows of a shard, or any range of them.
//
// A rule says which tensors it keeps; the caller holds them and lends views. Updates are elementwise, so pieces may be
// cut anywhere (with 8-bit moments at multiples of kMomentBlock) and split over threads: on the CPU the bits depend on
// neither.
//
// [Note: Masters] Parameters of 16 bits lose small updates. What they are rounded from stays in a tensor of the rule's
// state: "master" (fp32), or "remainder" (the other 16 bits, kernels/weights.h: [Note: Split]). Without one they are
// rounded to nearest (as torch's optimizers do) or stochastically. Each piece says which.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "sherd/base/names.h"
#include "sherd/kernels/weights.h"
#include "sherd/memory/ledger.h"
#include "sherd/optim/optim_groups.h"

namespace sherd {

enum class Nesterov { no, yes };

/// What parameters of 16 bits are rounded from; see [Note: Masters]. fp32 parameters are their own.
enum class Master {
  nearest,     // nothing
  stochastic,  // nothing; bf16 only
  fp32,        // 4 bytes more
  split,       // 2 bytes more; bf16 only
};
inline constexpr Name<Master> kMasterNames[] = {
    {Master::nearest, "nearest"}, {Master::stochastic, "none"}, {Master::fp32, "fp32"}, {Master::split, "split"}};

/// As users name it: nearest, none (stochastic), fp32, split; and the reverse. Throws ConfigError.
std::string_view name_of(Master master);
Master master_named(std::string_view name);

/// Of Adam, AdamW and Lion: fp32, or codes of 8 bits with a scale for each block (kernels/dynamic_map.h).
enum class MomentType { fp32, eight_bits };
/// How many moments share a scale: pieces with 8-bit moments begin at multiples of it.
constexpr int64_t kMomentBlock = 256;

/// Which rule, and what holds for all parameters alike (Hyperparameters holds what may differ).
struct UpdateRuleOptions {
  enum class Kind { adamw, adam, sgd, lion };  // each with an entry in optim/rule_table
  Kind kind = Kind::adamw;
  double momentum = 0.0;  // sgd only; 0: no state at all
  Nesterov nesterov = Nesterov::no;

  /// Throws ConfigError.
  void validate() const;
};

/// By a rule's name in the table, and the reverse. Throws ConfigError.
UpdateRuleOptions::Kind update_kind(std::string_view name);
std::string_view name_of(UpdateRuleOptions::Kind kind);

/// A tensor that a rule keeps for a piece: 1-D, zero-filled before the first step (a master: see set_values).
struct StateTensor {
  std::string_view name;  // torch's, or bitsandbytes' for 8-bit moments
  at::ScalarType type = at::kFloat;
  int64_t elements = 0;
  MemoryKind kind = MemoryKind::moments;
  enum class Per { element, block };  // one value for each element of the piece, or for kMomentBlock of them
  Per per = Per::element;
};

/// What the state of a piece depends on.
struct PieceShape {
  int64_t elements = 0;
  at::ScalarType type = at::kFloat;  // of the parameter
  MomentType moments = MomentType::fp32;
  Master master = Master::nearest;
};

/// Views lent by the caller: 1-D, contiguous, of one device. The gradient (fp32, bf16 or fp16) is only read.
struct UpdatePiece {
  at::Tensor parameter, gradient;
  std::vector<at::Tensor> state;  // in the order of UpdateRule::state()
  Master master = Master::nearest;
  int64_t first = 0;  // Master::stochastic: which element of the parameter the piece begins with, and
  uint64_t key = 0;   // a number of its own for each parameter
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

  /// The tensors that the rule keeps for a piece: its moments, then what the parameter is rounded from.
  std::vector<StateTensor> state(const PieceShape& shape) const;

  /// One update in place. On the CPU a vectorised pass without allocation on this thread's torch threads (but for
  /// Master::nearest); elsewhere update_by_aten().
  void update(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const;

  /// The same mathematics by ATen operators, on any device, without 8-bit moments, split and stochastic masters; up to
  /// two temporaries of the piece's size in fp32. Equal to the kernel up to rounding.
  void update_by_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const;

 protected:
  /// A range of a piece: `begin` is a multiple of kMomentBlock, weights and gradient start there, `state` does not.
  struct Range {
    int64_t begin, count;
    kernels::Gradient gradient;
    kernels::Weights weights;
    std::span<const at::Tensor> state;
  };
  virtual std::vector<StateTensor> moments(const PieceShape& shape) const = 0;
  virtual void run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const = 0;
  virtual void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const = 0;

 private:
  void check(const UpdatePiece& piece, const UpdateTime& time) const;
};

/// Gives a piece's parameter, and its master where it has one, these values: [n] fp32.
void set_values(const UpdatePiece& piece, const at::Tensor& values);
/// The values that set_values gave, or updates have made of them: fp32, the master's where there is one. A copy, or the
/// master itself.
at::Tensor values_of(const UpdatePiece& piece);

/// A tensor of fp32, bf16 or fp16 on the CPU, as kernels read it.
kernels::Gradient gradient_of(const at::Tensor& values);

/// Whether 8-bit moments of a parameter of `rows` x `row_elements`, spread over ranks by rows, have whole blocks on
/// every rank, and scales that are spread by the same rule; and whether it has kLeast8BitElements.
bool fits_eight_bits(int64_t rows, int64_t row_elements, int ranks);
/// Smaller parameters have fp32 moments, as bitsandbytes' have.
constexpr int64_t kLeast8BitElements = 4096;

/// Throws ConfigError.
std::unique_ptr<UpdateRule> make_update_rule(const UpdateRuleOptions& options);

}  // namespace sherd
