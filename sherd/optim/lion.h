// Lion: one momentum a parameter, "exp_avg"; in 8 bits bitsandbytes' "state1" (codes of the signed map, uint8) with
// "absmax1" (scales of blocks, fp32). See kernels/lion.h.
#pragma once

#include "sherd/optim/update_rule.h"

namespace sherd {

class LionRule final : public UpdateRule {
 private:
  std::vector<StateTensor> moments(const PieceShape& shape) const override;
  void run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const override;
  void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const override;
};

}  // namespace sherd
