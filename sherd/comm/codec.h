// What the wire carries of gradients, where ranks send them to each other.
//
// A group's slot holds gradients in the group's reduce type: what backward leaves there, and what one host sums in
// place. The codec is about the way between ranks alone, and at one place (shard/gradient_exchange.h): contributions to
// a sum are encoded, sums never. So every rank sums the same numbers, and all strategies still have the same bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

namespace sherd {

enum class Codec {
  identity,  // they travel as they are: exact
  bf16,      // fp32 values travel as bf16, rounded to the nearest: half the bytes; each contribution to a sum is off by
             // at most 2^-8 of itself
};

/// By its name. Throws ConfigError.
Codec codec_named(std::string_view name);
std::string_view name_of(Codec codec);

/// The type in which values of `type` travel; `type` itself where the codec does nothing for it.
at::ScalarType wire_type(Codec codec, at::ScalarType type);

/// Fills `wire`, of wire_type() and as long, with what `values` travel as.
void encode(Codec codec, const at::Tensor& values, const at::Tensor& wire);

}  // namespace sherd
