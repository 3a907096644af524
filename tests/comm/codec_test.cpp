#include "sherd/comm/codec.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linspace.h>
#include <gtest/gtest.h>

#include "sherd/base/error.h"

namespace sherd {
namespace {

TEST(Codec, Names) {
  for (const Codec codec : {Codec::identity, Codec::bf16}) EXPECT_EQ(codec_named(name_of(codec)), codec);
  try {
    codec_named("fp8");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "[codec] got 'fp8', expected identity or bf16; try identity");
  }
}

TEST(Codec, OnlyFp32TravelsAsAnother) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kComplexFloat}) {
    EXPECT_EQ(wire_type(Codec::identity, type), type);
    EXPECT_EQ(wire_type(Codec::bf16, type), type == at::kFloat ? at::kBFloat16 : type);
  }
}

TEST(Codec, Bf16IsOffByAtMostAFactorOf2ToThe8) {
  const at::Tensor values = at::linspace(-3, 3, 1001).pow(7);
  const at::Tensor wire = at::empty({1001}, at::kBFloat16);
  encode(Codec::bf16, values, wire);
  EXPECT_TRUE(((wire.to(at::kFloat) - values).abs() <= values.abs() * 0x1p-8).all().item<bool>());
  const at::Tensor same = at::empty({1001});
  encode(Codec::identity, values, same);
  EXPECT_TRUE(at::equal(same, values));
}

}  // namespace
}  // namespace sherd
