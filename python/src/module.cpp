// The extension module sherd._C: what the Python package calls.
#include <torch/csrc/utils/pybind.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "python/src/heap.h"
#include "python/src/model.h"
#include "python/src/optimizer.h"
#include "python/src/unit.h"
#include "sherd/base/error.h"
#include "sherd/comm/connect.h"
#include "sherd/comm/rendezvous.h"
#include "sherd/config/json_file.h"
#include "sherd/config/train_config.h"
#include "sherd/memory/deferred.h"
#include "sherd/models/chunked_loss.h"
#include "sherd/optim/optim_groups.h"
#include "sherd/optim/schedule.h"

namespace sherd::python {
namespace {

using Timeout = std::chrono::duration<double>;

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Timeout(seconds));
}

/// Gives the memory of `tensor` back to whoever else uses it: the tensor keeps its shape, and has none.
void release_memory(const at::Tensor& tensor) {
  const at::Tensor empty = deferred_tensor(tensor.sizes(), tensor.options());
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(empty.storage());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(tensor.sizes());
  tensor.unsafeGetTensorImpl()->set_storage_offset(0);
}

void add_transport(py::module& module) {
  py::class_<Transport, std::shared_ptr<Transport>>(module, "Transport", "How this rank exchanges bytes with others.")
      .def_property_readonly("rank", &Transport::rank)
      .def_property_readonly("size", &Transport::size)
      .def_property_readonly("name", [](const Transport& t) { return std::string(t.name()); })
      .def_property_readonly("shares_memory", [](const Transport& t) { return t.topology().one_memory(); })
      .def(
          "barrier",
          [](Transport& t, const std::string& purpose) {
            t.resume();
            barrier(t, t.intern(purpose));
          },
          py::arg("purpose") = "", py::call_guard<py::gil_scoped_release>())
      .def(
          "say", [](Transport& t, const std::string& call) { return std::string(t.say(t.intern(call))); },
          py::arg("call"))
      .def("finish", &Transport::finish, py::call_guard<py::gil_scoped_release>())
      .def(
          "exchange",
          [](Transport& t, const std::vector<double>& values) {
            t.resume();
            return t.exchange(values);
          },
          py::arg("values"), py::call_guard<py::gil_scoped_release>())
      .def(
          "abort", [](Transport& t, const std::string& cause) { t.abort(cause); }, py::arg("cause"))
      .def("recover", &Transport::recover, py::call_guard<py::gil_scoped_release>());
  module.def(
      "join_world",
      [](double timeout) {
        const World world = join_world(milliseconds(timeout));
        return std::make_tuple(world.rank, world.size, world.local_rank, world.store);
      },
      py::arg("timeout"), py::call_guard<py::gil_scoped_release>());
  module.def(
      "connect",
      [](int rank, int size, int local_rank, const c10::intrusive_ptr<c10d::Store>& store, double timeout,
         const std::string& kind, const std::string& timeout_argument) {
        return connect({rank, size, local_rank, store, milliseconds(timeout), timeout_argument}, kind);
      },
      py::arg("rank"), py::arg("size"), py::arg("local_rank"), py::arg("store"), py::arg("timeout"), py::arg("kind"),
      py::arg("timeout_argument"), py::call_guard<py::gil_scoped_release>());
}

void add_model(py::module& module) {
  py::enum_<AfterForward>(module, "AfterForward")
      .value("reshard", AfterForward::reshard)
      .value("keep", AfterForward::keep)
      .value("show", AfterForward::show);
  py::enum_<InBackward>(module, "InBackward").value("unshard", InBackward::unshard).value("leave", InBackward::leave);
  py::enum_<AfterBackward>(module, "AfterBackward")
      .value("reshard", AfterBackward::reshard)
      .value("keep", AfterBackward::keep);
  py::enum_<Pass>(module, "Pass").value("forward", Pass::forward).value("backward", Pass::backward);
  py::enum_<Gradients>(module, "Gradients")
      .value("reduce", Gradients::reduce)
      .value("reduce_shard_axis", Gradients::reduce_shard_axis)
      .value("hold", Gradients::hold);
  py::class_<Place>(module, "Place")
      .def(py::init<py::dict, py::str, py::object, py::object>(), py::arg("parameters"), py::arg("name"),
           py::arg("whole"), py::arg("shard"));
  py::class_<Unit, std::shared_ptr<Unit>>(module, "Unit")
      .def(py::init<std::vector<Place>>(), py::arg("places"))
      .def("enter", &Unit::enter)
      .def("leave", &Unit::leave)
      .def("fail", &Unit::fail)
      .def("unshard", &Unit::unshard)
      .def("reshard", &Unit::reshard)
      .def("show_shards", &Unit::show_shards)
      .def_property_readonly("shows_whole", &Unit::shows_whole)
      .def("set_after_forward", &Unit::set_after_forward)
      .def("set_gradients", &Unit::set_gradients, py::arg("gradients"), py::call_guard<py::gil_scoped_release>())
      .def("set_in_backward", &Unit::set_in_backward)
      .def("set_after_backward", &Unit::set_after_backward)
      .def("set_divisor", &Unit::set_divisor, py::arg("divisor"))
      .def("set_reduced_hook", &Unit::set_reduced_hook, py::arg("hook"))
      .def("set_prefetch", &Unit::set_prefetch, py::arg("pass_"), py::arg("units"));
  py::enum_<Copies>(module, "Copies").value("one", Copies::one).value("each_rank", Copies::each_rank);
  py::class_<Parameter>(module, "Parameter")
      .def(py::init([](std::string fqn, at::Tensor whole, at::Tensor shard, at::Tensor local, at::ScalarType reduce,
                       Copies copies, const std::optional<at::Tensor>& outside) {
             return Parameter{std::move(fqn),
                              std::move(whole),
                              std::move(shard),
                              std::move(local),
                              reduce,
                              copies,
                              outside.value_or(at::Tensor())};
           }),
           py::arg("fqn"), py::arg("whole"), py::arg("shard"), py::arg("local"), py::arg("reduce"), py::arg("copies"),
           py::arg("outside") = py::none());
  py::class_<UnitPlan>(module, "UnitPlan")
      .def(py::init<std::shared_ptr<Unit>, std::string, size_t, std::vector<Parameter>, AfterForward>(),
           py::arg("unit"), py::arg("name"), py::arg("parent"), py::arg("parameters"), py::arg("after_forward"));
  py::class_<Model, std::shared_ptr<Model>>(module, "Model")
      .def(py::init([](std::vector<UnitPlan> units, std::shared_ptr<Transport> transport, const std::string& strategy,
                       int64_t persistent_below, int replicate, std::string name, MakeGradient make_gradient) {
             return std::make_shared<Model>(std::move(units), std::move(transport),
                                            ModelOptions{strategy, persistent_below, replicate, std::move(name)},
                                            std::move(make_gradient));
           }),
           py::arg("units"), py::arg("transport"), py::arg("strategy"), py::arg("persistent_below"),
           py::arg("replicate"), py::arg("name"), py::arg("make_gradient"))
      .def("before_update", &Model::before_update, py::call_guard<py::gil_scoped_release>())
      .def("before_write", &Model::before_write, py::call_guard<py::gil_scoped_release>())
      .def("note_alias", &Model::note_alias)
      .def("shard_of", &Model::shard_of, py::arg("parameter"))
      .def("gradient_norm", &Model::gradient_norm, py::arg("order"))
      .def("origin_of_non_finite", &Model::origin_of_non_finite, py::call_guard<py::gil_scoped_release>())
      .def("note_update", &Model::note_update)
      .def("settle", &Model::settle, py::call_guard<py::gil_scoped_release>())
      .def("expect_backward", &Model::expect_backward, py::arg("roots"), py::call_guard<py::gil_scoped_release>())
      .def("end_expected", &Model::end_expected)
      .def("failed_in_backward", &Model::failed_in_backward, py::arg("cause"), py::arg("has_parameters"))
      .def("reduce", &Model::reduce, py::arg("shards"), py::arg("gradients"))
      .def_property_readonly("gradients", &Model::gradients)
      .def("set_gradients", py::overload_cast<Gradients>(&Model::set_gradients), py::arg("gradients"),
           py::call_guard<py::gil_scoped_release>())
      .def("memory", &Model::memory)
      .def_property_readonly("warnings", &Model::warnings);
}

}  // namespace
}  // namespace sherd::python

PYBIND11_MODULE(_C, module) {
  using namespace sherd::python;
  py::register_exception<sherd::ConfigError>(module, "ConfigError", PyExc_ValueError);
  py::register_exception<sherd::FaultError>(module, "FaultError", PyExc_RuntimeError);
  module.def(
      "unbacked",
      [](const std::vector<int64_t>& sizes, const at::Tensor& like) {
        return sherd::deferred_tensor(sizes, like.options());
      },
      py::arg("sizes"), py::arg("like"));
  module.def("keep_freed_memory", &keep_freed_memory);
  module.def("return_freed_memory", &return_freed_memory);
  module.def("release_memory", &release_memory, py::arg("tensor"));
  add_transport(module);
  add_model(module);
  add_optimizer(module);
  module.def(
      "read_program_config",
      [](const std::string& text, const std::string& name) {
        const auto config = sherd::read_program_config(sherd::parse_json(text, name));
        return sherd::to_json(config, sherd::Caller::program).dump();
      },
      "The configuration with all defaults, JSON to JSON; `name` is for errors.", py::arg("text"), py::arg("name"));
  module.def(
      "learning_rate_scale",
      [](const std::string& type, int64_t warmup, int64_t steps, double final_ratio, int64_t step) {
        return sherd::learning_rate_scale({sherd::schedule_kind(type), warmup, steps, final_ratio}, step);
      },
      py::arg("type"), py::arg("warmup"), py::arg("steps"), py::arg("final_ratio"), py::arg("step"));
  module.def(
      "validate_transport", [](const std::string& kind) { sherd::validate_transport(kind); }, py::arg("kind"));
  module.def(
      "validate_strategy", [](const std::string& name) { sherd::find_strategy(name); }, py::arg("name"));
  module.def("glob_matches", &sherd::glob_matches, py::arg("glob"), py::arg("text"));
  module.def("linear_cross_entropy", &sherd::linear_cross_entropy, py::arg("x"), py::arg("weight"), py::arg("targets"),
             py::arg("scale"), py::call_guard<py::gil_scoped_release>());
}
