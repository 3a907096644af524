// Which of a model's units are sharded on their own. What is not chosen is part of the unit around it.
//
// Small units cost: each has its own waits, and on a network its own collectives. A policy merges them.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace sherd {

/// A sherd::Unit<Block> in the model.
struct UnitCandidate {
  std::string_view name;  // in the module tree
  const torch::nn::Module& module;
  int64_t parameters = 0;  // elements in it, those of units inside it included, a tied one once
};

/// True for the units to shard on their own.
using UnitPolicy = std::function<bool(const UnitCandidate&)>;

/// Every unit: what an empty policy means, too.
UnitPolicy all_units();

/// Units of at least so many parameters (elements).
UnitPolicy units_of_at_least(int64_t parameters);

/// Units whose name matches one of these globs (base/glob.h).
UnitPolicy units_named(std::vector<std::string> patterns);

/// Units whose block is a `Block`.
template <class Block>
UnitPolicy units_of_type() {
  return [](const UnitCandidate& unit) { return dynamic_cast<const Block*>(&unit.module) != nullptr; };
}

}  // namespace sherd
