// torch.optim.AdamW and torch.optim.Adam: two moments a parameter, "exp_avg" and "exp_avg_sq".
#pragma once

#include "sherd/optim/update_rule.h"

namespace sherd {

class AdamRule final : public UpdateRule {
 public:
  enum class Decay { decoupled, l2 };  // of the parameter (AdamW); added to the gradient (Adam)
  explicit AdamRule(Decay decay) : decay_(decay) {}
  std::span<const std::string_view> state_names() const override;

 private:
  void run_kernel(const Spans& spans, const Hyperparameters& h, const UpdateTime& time) const override;
  void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const override;

  Decay decay_;
};

}  // namespace sherd
