// AdamW on a piece of a parameter: the rows of a shard, or any range of them.
//
// The update is elementwise, so pieces may be cut anywhere: on the CPU the bits do not depend on the cut.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "sherd/optim/optim_groups.h"

namespace sherd {

/// Views lent by the caller: 1-D, contiguous, fp32, of one length and device. The gradient is only read.
struct AdamWPiece {
  at::Tensor parameter, gradient, m, v;
};

/// One update in place. `step` counts from 1; the gradient is multiplied with `gradient_scale` (clipping) on the fly.
/// On the CPU one vectorised pass without allocation, single-threaded; elsewhere adamw_update_aten().
void adamw_update(const AdamWPiece& piece, const Hyperparameters& h, int64_t step, double lr_scale,
                  double gradient_scale);

/// The same mathematics by ATen operators, on any device; two temporaries of the piece's size. Equal to the kernel up
/// to rounding.
void adamw_update_aten(const AdamWPiece& piece, const Hyperparameters& h, int64_t step, double lr_scale,
                       double gradient_scale);

}  // namespace sherd
