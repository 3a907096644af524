#include "python/src/optimizer.h"

#include <nlohmann/json.hpp>

#include "python/src/model.h"
#include "sherd/base/error.h"
#include "sherd/base/fnv.h"
#include "sherd/config/train_config.h"
#include "sherd/engine/muon_step.h"
#include "sherd/engine/precision.h"
#include "sherd/optim/loss_scaler.h"
#include "sherd/optim/update_rule.h"

namespace sherd::python {
namespace {

namespace py = pybind11;

Master master_named(const std::string& name) { return named(kMasterNames, name, "optim", "split"); }

/// A piece as Python gives it: parameter, gradient and states, of any shape.
struct Piece {
  std::vector<at::Tensor> tensors;
  int64_t first;
  uint64_t key;
};

UpdatePiece flat(const Piece& given, Master master) {
  const auto& tensors = given.tensors;
  UpdatePiece piece{tensors[0].view(-1), tensors[1].contiguous().view(-1), {}};
  for (size_t k = 2; k < tensors.size(); ++k) piece.state.push_back(tensors[k].view(-1));
  piece.master = tensors[0].scalar_type() == at::kFloat ? Master::nearest : master;
  piece.first = given.first;
  piece.key = given.key;
  return piece;
}

void update(const UpdateRule& rule, const std::vector<Piece>& pieces, const Hyperparameters& values,
            const UpdateTime& time, Master master) {
  const at::NoGradGuard no_grad;
  for (const auto& piece : pieces)
    if (piece.tensors[0].numel() > 0) rule.update(flat(piece, master), values, time);
}

/// Of one model's matrices, or of plain ones where `model` is null.
void update_matrices(const MuonRule& rule, Model* model, const std::vector<Piece>& pieces,
                     const std::vector<std::pair<int64_t, int64_t>>& shapes, const Hyperparameters& values,
                     const UpdateTime& time, Master master) {
  const at::NoGradGuard no_grad;
  std::vector<MuonMatrix> matrices;
  for (size_t k = 0; k < pieces.size(); ++k)
    matrices.push_back({shapes[k].first, shapes[k].second, {flat(pieces[k], master)}, values});
  if (model != nullptr) {
    try {
      MuonStep(rule, model->shard_transport(), model->ledger(), Spread::sharded).run(matrices, time);
    } catch (const std::exception& error) {
      model->shard_transport().abort(error.what());
      throw;
    }
    return;
  }
  const auto alone = solo_transport();
  Ledger ledger;
  MuonStep(rule, *alone, ledger, Spread::whole).run(matrices, time);
}

void add_rule(py::module& module) {
  py::class_<Piece>(module, "Piece",
                    "A piece of a parameter to update: [parameter, gradient, states ...] of this rank.")
      .def(py::init<std::vector<at::Tensor>, int64_t, uint64_t>(), py::arg("tensors"), py::arg("first"),
           py::arg("key"));
  py::class_<UpdateRule>(module, "UpdateRule", "The update of an optimizer on fp32, bf16 or fp16 pieces of parameters.")
      .def(py::init([](const std::string& kind, double momentum, bool nesterov) {
             return make_update_rule({update_kind(kind), momentum, nesterov ? Nesterov::yes : Nesterov::no});
           }),
           py::arg("kind"), py::arg("momentum") = 0.0, py::arg("nesterov") = false)
      .def(
          "state",
          [](const UpdateRule& rule, at::ScalarType type, bool eight_bits, const std::string& master) {
            const PieceShape shape{kMomentBlock, type, eight_bits ? MomentType::eight_bits : MomentType::fp32,
                                   master_named(master)};
            std::vector<std::tuple<std::string, at::ScalarType, bool>> all;
            for (const auto& state : rule.state(shape))
              all.emplace_back(state.name, state.type, state.elements < kMomentBlock);
            return all;
          },
          "Names and types of what the rule keeps for a parameter, and whether it is one value for each 256 elements.",
          py::arg("type"), py::arg("eight_bits"), py::arg("master"))
      .def(
          "update",
          [](const UpdateRule& rule, const std::vector<Piece>& pieces, double lr, double beta1, double beta2,
             double eps, double weight_decay, int64_t step, double gradient_scale, const std::string& master) {
            update(rule, pieces, {lr, beta1, beta2, eps, weight_decay}, {step, 1.0, gradient_scale},
                   master_named(master));
          },
          py::arg("pieces"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
          py::arg("step"), py::arg("gradient_scale"), py::arg("master"), py::call_guard<py::gil_scoped_release>());
  py::class_<MuonRule, UpdateRule>(module, "MuonRule", "The update of matrices by Muon.")
      .def(py::init(
               [](double momentum, bool nesterov, bool match_adamw, int64_t iterations, const std::string& products) {
                 return MuonRule({momentum, nesterov ? Nesterov::yes : Nesterov::no,
                                  match_adamw ? MuonScale::match_adamw : MuonScale::original, iterations,
                                  muon_products(products)});
               }),
           py::arg("momentum"), py::arg("nesterov"), py::arg("match_adamw"), py::arg("iterations"), py::arg("products"))
      .def(
          "update_matrices",
          [](const MuonRule& rule, Model* model, const std::vector<Piece>& pieces,
             const std::vector<std::pair<int64_t, int64_t>>& shapes, double lr, double weight_decay, int64_t step,
             double gradient_scale, const std::string& master) {
            update_matrices(rule, model, pieces, shapes, {.lr = lr, .weight_decay = weight_decay},
                            {step, 1.0, gradient_scale}, master_named(master));
          },
          "Of a model's matrices, by their rows of this rank; collective. Or of whole ones, without a model.",
          py::arg("model").none(true), py::arg("pieces"), py::arg("shapes"), py::arg("lr"), py::arg("weight_decay"),
          py::arg("step"), py::arg("gradient_scale"), py::arg("master"), py::call_guard<py::gil_scoped_release>());
  module.def("fits_eight_bits", &fits_eight_bits, py::arg("rows"), py::arg("row_elements"), py::arg("ranks"));
  module.def(
      "parameter_key",
      [](const std::string& name) {
        Fnv key;
        key.add(name);
        return key.value();
      },
      "What random rounding of a parameter of this name is keyed by.", py::arg("name"));
}

void add_scaler(py::module& module) {
  py::class_<LossScaler>(module, "LossScaler", "Dynamic loss scaling by DeepSpeed's rule.")
      .def_property_readonly("scale", &LossScaler::scale)
      .def("state_dict",
           [](const LossScaler& scaler) {
             const LossScaleState& s = scaler.state();
             return py::dict(py::arg("scale") = s.scale, py::arg("hysteresis_left") = s.hysteresis_left,
                             py::arg("steps") = s.steps, py::arg("last_overflow") = s.last_overflow);
           })
      .def(
          "load_state_dict",
          [](LossScaler& scaler, const py::dict& state) {
            scaler.set_state({state["scale"].cast<double>(), state["hysteresis_left"].cast<int64_t>(),
                              state["steps"].cast<int64_t>(), state["last_overflow"].cast<int64_t>()});
          },
          py::arg("state"))
      .def(
          "update",
          [](LossScaler& scaler, bool overflowed) {
            return scaler.update(overflowed ? LossScaler::Step::overflowed : LossScaler::Step::made);
          },
          "False: the overflow came at the smallest scale.", py::arg("overflowed"));
  module.def(
      "loss_scaler",
      [](const std::string& setting, at::ScalarType compute, at::ScalarType reduce) {
        const auto config = read_program_config({{"loss_scale", nlohmann::json::parse(setting)}}).loss_scale;
        const auto options = config.resolve(Precision{.compute = compute, .reduce = reduce}.fp16());
        return options ? std::make_unique<LossScaler>(*options) : nullptr;
      },
      "Of the setting loss_scale, as JSON; None: the loss is not scaled.", py::arg("setting"), py::arg("compute"),
      py::arg("reduce"));
}

}  // namespace

void add_optimizer(py::module& module) {
  add_rule(module);
  add_scaler(module);
  module.def(
      "resolve_precision",
      [](const std::string& compute, std::optional<std::string> storage, std::optional<std::string> reduce,
         std::optional<std::string> master) {
        const PrecisionPolicy policy{compute, std::move(storage), std::move(reduce), std::move(master)};
        const Precision precision = resolve(policy, at::kCPU);
        return std::make_tuple(precision.compute, precision.storage, precision.reduce,
                               std::string(text_of(kMasterNames, precision.master)),
                               note_on(policy, precision, at::kCPU));
      },
      "Compute, storage and reduce types, the master, and what is worth saying.", py::arg("compute"),
      py::arg("storage"), py::arg("reduce"), py::arg("master"));
  module.def(
      "precision_type", [](const std::string& name) { return precision_type("precision", name); }, py::arg("name"));
}

}  // namespace sherd::python
