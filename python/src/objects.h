// The tensors in what Python modules are called with and return.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <vector>

namespace sherd::python {

/// Appends every tensor in `object`: itself, or in tuples, lists, dicts (a transformers ModelOutput is one) and
/// dataclasses, to any depth. Others count as holding none. The caller holds the GIL.
void collect_tensors(PyObject* object, std::vector<at::Tensor>& tensors);

}  // namespace sherd::python
