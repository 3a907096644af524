// torch.optim.SGD with dampening 0: one tensor a parameter ("momentum_buffer"), or none without momentum.
#pragma once

#include "sherd/optim/update_rule.h"

namespace sherd {

class SgdRule final : public UpdateRule {
 public:
  SgdRule(double momentum, Nesterov nesterov) : momentum_(momentum), nesterov_(nesterov) {}

 private:
  std::vector<StateTensor> moments(const PieceShape& shape) const override;
  void run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const override;
  void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const override;

  double momentum_;
  Nesterov nesterov_;
};

}  // namespace sherd
