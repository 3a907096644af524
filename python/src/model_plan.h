// What a sharded Python model is made of: its units and their parameters, as Python has found them.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string>
#include <vector>

#include "python/src/unit.h"
#include "sherd/shard/sharded_model.h"

namespace sherd::python {

struct Parameter {
  std::string fqn;
  at::Tensor whole;                    // the module's own, of all rows; armed by the model
  at::Tensor shard;                    // the DTensor that the optimizer sees
  at::Tensor local;                    // its local tensor, [this rank's rows, ...]: gets the store's memory
  at::ScalarType reduce = at::kFloat;  // of its gradients on their way
  Copies copies = Copies::one;         // each_rank: the local tensor is whole
  at::Tensor outside = {};             // see [Note: Whole outside]
};

struct UnitPlan {
  std::shared_ptr<Unit> unit;
  std::string name;
  size_t parent = 0;  // index of the unit around it, which comes before it
  std::vector<Parameter> parameters;
  AfterForward after_forward = AfterForward::reshard;
};

struct ModelOptions {
  std::string strategy = "zero3";
  int64_t persistent_below = 0;
  int replicate = 1;  // of the mesh (replicate x shard) that the local tensors are spread over
  std::string name;   // of the root's class
};

/// (local, shard) -> the DTensor over `local` that is a gradient of `shard`.
using MakeGradient = py::function;

}  // namespace sherd::python
