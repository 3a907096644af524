// Update rules, loss scales and precision, as the Python package calls them.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace sherd::python {

void add_optimizer(pybind11::module& module);

}  // namespace sherd::python
