// What the loops of kernels/adamw.h need, derived once in fp64.
#pragma once

#include "sherd/kernels/adamw.h"

namespace sherd::kernels {

/// lerp(m, g, w) is m + w (g - m) for w < 0.5 and g + (w - 1) (g - m) above, so that it is exact at both ends.
struct AdamWFactors {
  float gradient_scale;
  float decay;  // 1 - lr * weight_decay
  float l2;
  float m_weight;     // w or w - 1
  float lerp_from_m;  // 1: from m with w; 0: from g with w - 1
  float beta2;
  float g2_weight;  // 1 - beta2
  float rate;       // lr * bias_correction2_sqrt / bias_correction1
  float eps;        // eps * bias_correction2_sqrt
};

void adamw_map(const AdamWFactors& factors, int64_t n, const Gradient& gradient, const Weights& weights,
               const MapMoments& moments);

}  // namespace sherd::kernels
