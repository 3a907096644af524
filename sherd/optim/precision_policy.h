// Which types a user asks for; engine/precision.h makes of it what a model gets ([Note: Precision] there).
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

#include "sherd/base/names.h"

namespace sherd {

inline constexpr Name<at::ScalarType> kPrecisionTypeNames[] = {
    {at::kFloat, "fp32"}, {at::kBFloat16, "bf16"}, {at::kHalf, "fp16"}};

/// Whether anything is computed or reduced in fp16.
enum class Fp16 { absent, present };

/// Whether norms keep fp32, or are as all other parameters.
enum class Norms { fp32, compute };
inline constexpr Name<Norms> kNormsNames[] = {{Norms::fp32, "fp32"}, {Norms::compute, "compute"}};

/// What a user asks for; what is left open follows from the rest.
struct PrecisionPolicy {
  std::string compute = "fp32";  // fp32, bf16, fp16, or auto: the storage type where this machine multiplies it
  std::optional<std::string> storage = {};  // of compute; auto: bf16
  std::optional<std::string> reduce = {};   // fp32
  std::optional<std::string> master = {};   // fp32, split, none; bf16: split, fp16: fp32
  Norms norms = Norms::fp32;
};

}  // namespace sherd
