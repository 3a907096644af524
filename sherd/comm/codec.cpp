#include "sherd/comm/codec.h"

#include "sherd/base/error.h"

namespace sherd {

Codec codec_named(std::string_view name) {
  if (name == "identity") return Codec::identity;
  if (name == "bf16") return Codec::bf16;
  config_error("codec", "got '{}', expected identity or bf16; try identity", name);
}

std::string_view name_of(Codec codec) { return codec == Codec::identity ? "identity" : "bf16"; }

at::ScalarType wire_type(Codec codec, at::ScalarType type) {
  return codec == Codec::bf16 && type == at::kFloat ? at::kBFloat16 : type;
}

void encode(Codec codec, const at::Tensor& values, const at::Tensor& wire) {
  SHERD_CHECK(wire.scalar_type() == wire_type(codec, values.scalar_type()) && wire.numel() == values.numel());
  wire.copy_(values);
}

}  // namespace sherd
