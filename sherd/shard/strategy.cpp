#include "sherd/shard/strategy.h"

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr Strategy kStrategies[] = {
    // name     parameters       gradients        optimizer
    {"ddp", Spread::whole, Spread::whole, Spread::whole},
    {"zero1", Spread::whole, Spread::whole, Spread::sharded},
    {"zero2", Spread::whole, Spread::sharded, Spread::sharded},
    {"zero3", Spread::sharded, Spread::sharded, Spread::sharded},
    {"hsdp", Spread::sharded, Spread::sharded, Spread::sharded},  // over the mesh's shard axis
};

}  // namespace

std::span<const Strategy> strategies() { return kStrategies; }

const Strategy& find_strategy(std::string_view name) {
  if (name == "fsdp") name = "zero3";
  for (const auto& strategy : kStrategies)
    if (strategy.name == name) return strategy;
  config_error("strategy", "got '{}', expected ddp, zero1, zero2, zero3, fsdp or hsdp; try zero3", name);
}

}  // namespace sherd
