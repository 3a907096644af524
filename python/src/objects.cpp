#include "python/src/objects.h"

#include <torch/csrc/autograd/python_variable.h>

namespace sherd::python {
namespace {

// Deeper than anything a module is called with: a structure that holds itself ends here.
constexpr int kDepth = 32;

bool is_plain(PyObject* object) {
  return object == Py_None || PyLong_Check(object) || PyFloat_Check(object) || PyUnicode_Check(object);
}

void collect(PyObject* object, std::vector<at::Tensor>& tensors, int depth) {
  if (object == nullptr || is_plain(object) || depth == 0) return;
  if (THPVariable_Check(object)) {
    tensors.push_back(THPVariable_Unpack(object));
  } else if (PyTuple_Check(object)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i) collect(PyTuple_GET_ITEM(object, i), tensors, depth - 1);
  } else if (PyList_Check(object)) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); ++i) collect(PyList_GET_ITEM(object, i), tensors, depth - 1);
  } else if (PyDict_Check(object)) {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(object, &at, &key, &value) != 0) collect(value, tensors, depth - 1);
  } else if (py::hasattr(py::type::handle_of(object), "__dataclass_fields__")) {
    const py::dict fields = py::type::handle_of(object).attr("__dataclass_fields__");
    for (const auto& field : fields)
      if (py::hasattr(object, field.first)) collect(py::getattr(object, field.first).ptr(), tensors, depth - 1);
  }
}

}  // namespace

void collect_tensors(PyObject* object, std::vector<at::Tensor>& tensors) { collect(object, tensors, kDepth); }

}  // namespace sherd::python
