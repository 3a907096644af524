// torch.optim.AdamW and torch.optim.Adam: two moments a parameter, "exp_avg" and "exp_avg_sq"; in 8 bits bitsandbytes'
// "state1" and "state2" (codes, uint8) with "absmax1" and "absmax2" (scales of blocks, fp32).
#pragma once

#include "sherd/optim/update_rule.h"

namespace sherd {

class AdamRule final : public UpdateRule {
 public:
  enum class Decay { decoupled, l2 };  // of the parameter (AdamW); added to the gradient (Adam)
  explicit AdamRule(Decay decay) : decay_(decay) {}

 private:
  std::vector<StateTensor> moments(const PieceShape& shape) const override;
  void run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const override;
  void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const override;

  Decay decay_;
};

}  // namespace sherd
