#include "sherd/shard/strategy.h"

#include "sherd/base/error.h"

namespace sherd {
namespace {

constexpr Strategy kStrategies[] = {
    // name     parameters       gradients        optimizer         sums              axes
    {"ddp", Spread::whole, Spread::whole, Spread::whole, Sums::every_rank, MeshAxes::shard},
    {"zero1", Spread::whole, Spread::whole, Spread::sharded, Sums::owner, MeshAxes::shard},
    {"zero2", Spread::whole, Spread::sharded, Spread::sharded, Sums::owner, MeshAxes::shard},
    {"zero3", Spread::sharded, Spread::sharded, Spread::sharded, Sums::owner, MeshAxes::shard},
    {"hsdp", Spread::sharded, Spread::sharded, Spread::sharded, Sums::owner, MeshAxes::replicate_and_shard},
};

std::string_view name_of(Spread spread) { return spread == Spread::whole ? "whole" : "sharded"; }

}  // namespace

std::span<const Strategy> strategies() { return kStrategies; }

void Strategy::validate(const Mesh& mesh) const {
  // A rank that has all of what comes later in a step needs all of what it is made from.
  const bool in_order = (parameters == Spread::whole || gradients == Spread::sharded) &&
                        (gradients == Spread::whole || optimizer == Spread::sharded);
  const bool summed = (optimizer == Spread::whole) == (sums == Sums::every_rank);
  if (!in_order || !summed)
    config_error("strategy",
                 "got '{}' with parameters {}, gradients {}, optimizer {} and sums for {}, expected gradients to be "
                 "sharded where parameters are, the optimizer where gradients are, and sums for every rank only with a "
                 "whole optimizer; try zero2",
                 name, name_of(parameters), name_of(gradients), name_of(optimizer),
                 sums == Sums::owner ? "the owner" : "every rank");
  if (mesh.replicate != 1 && axes != MeshAxes::replicate_and_shard)
    config_error("mesh.replicate", "got {} with strategy {}, which shards over all ranks, expected 1; try hsdp",
                 mesh.replicate, name);
}

const Strategy& find_strategy(std::string_view name) {
  if (name == "fsdp") name = "zero3";
  for (const auto& strategy : kStrategies)
    if (strategy.name == name) return strategy;
  config_error("strategy", "got '{}', expected ddp, zero1, zero2, zero3, fsdp or hsdp; try zero3", name);
}

}  // namespace sherd
