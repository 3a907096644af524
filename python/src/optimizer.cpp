#include "python/src/optimizer.h"

#include <nlohmann/json.hpp>

#include "python/src/model.h"
#include "sherd/base/error.h"
#include "sherd/config/train_config.h"
#include "sherd/engine/precision.h"
#include "sherd/optim/rule_table.h"
#include "sherd/step/muon_step.h"
#include "sherd/step/shard_states.h"
#include "sherd/step/step_policy.h"

namespace sherd::python {
namespace {

namespace py = pybind11;

/// A shard as Python gives it: [parameter, gradient, states ...] of this rank, of any shape.
struct Piece {
  std::vector<at::Tensor> tensors;
  std::shared_ptr<OwnedShard> shard;
};

UpdatePiece flat(const Piece& given, Master master) {
  const auto& tensors = given.tensors;
  UpdatePiece piece{tensors[0].view(-1), tensors[1].contiguous().view(-1), {}};
  for (size_t k = 2; k < tensors.size(); ++k) piece.state.push_back(tensors[k].view(-1));
  piece.master = master_for(*given.shard, master);
  piece.first = given.shard->first_element();
  if (piece.master == Master::stochastic) piece.key = key_of(*given.shard);
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
                     const Hyperparameters& values, const UpdateTime& time, Master master) {
  const at::NoGradGuard no_grad;
  std::vector<MuonMatrix> matrices;
  for (const auto& piece : pieces)
    matrices.push_back({piece.shard->sizes[0], piece.shard->row_elements,
                        [&piece, master] { return std::vector<UpdatePiece>{flat(piece, master)}; }, values});
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

std::shared_ptr<OwnedShard> make_shard(std::string fqn, std::string unit, std::vector<int64_t> sizes, int64_t first_row,
                                       int ranks, const at::Tensor& local) {
  const int64_t width = sizes.empty() ? 1 : c10::multiply_integers(sizes.begin() + 1, sizes.end());
  const Rows rows{first_row, width == 0 ? 0 : local.numel() / width};
  return std::make_shared<OwnedShard>(
      OwnedShard{std::move(fqn), std::move(unit), std::move(sizes), rows, width, ranks, local.detach().view(-1)});
}

/// What a rule keeps: (name, tensor, whether it is one value for each block).
using NamedState = std::tuple<std::string, at::Tensor, bool>;

/// Zeros in the books of `model` (null: in none), masters with the parameters' values.
std::vector<std::vector<NamedState>> make_named_states(Model* model,
                                                       const std::vector<std::shared_ptr<OwnedShard>>& shards,
                                                       const UpdateRule& rule, const std::vector<bool>& eight_bits,
                                                       const std::string& master) {
  const at::NoGradGuard no_grad;
  std::vector<const OwnedShard*> all;
  std::vector<ShardRule> rules;
  for (size_t i = 0; i < shards.size(); ++i) {
    all.push_back(shards[i].get());
    rules.push_back({&rule, eight_bits[i] ? MomentType::eight_bits : MomentType::fp32,
                     master_for(*shards[i], master_named(master))});
  }
  Ledger none;
  std::vector<std::vector<NamedState>> named;
  for (const ShardState& state : make_states(model != nullptr ? model->ledger() : none, all, rules)) {
    const OwnedShard& shard = *shards[named.size()];
    auto& tensors = named.emplace_back();
    for (size_t k = 0; k < state.tensors.size(); ++k) {
      if (state.kinds[k].name == "master") state.tensors[k].copy_(shard.values);
      tensors.emplace_back(state.kinds[k].name, state.tensors[k], state.kinds[k].per == StateTensor::Per::block);
    }
  }
  return named;
}

void scale_all(const std::vector<at::Tensor>& tensors, double scale) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& tensor : tensors) at::Tensor(tensor).mul_(scale);
}

std::vector<double> numbers_of(const RuleOption& option, const py::object& value) {
  if (option.type != RuleOption::Type::betas) return {py::float_(value).cast<double>()};
  std::vector<double> numbers;
  for (const auto& item : value) numbers.push_back(py::float_(py::reinterpret_borrow<py::object>(item)).cast<double>());
  return numbers;
}

py::object standard_of(const RuleOption& option) {
  switch (option.type) {
    case RuleOption::Type::number:
      return py::float_(option.standard);
    case RuleOption::Type::flag:
      return py::bool_(option.standard != 0);
    case RuleOption::Type::betas:
      return py::make_tuple(option.standard, option.second);
  }
  SHERD_CHECK(false);
}

void add_table(py::module& module) {
  py::class_<RuleOption>(module, "RuleOption", "An option of an update rule.")
      .def_property_readonly("name", [](const RuleOption& option) { return std::string(option.name); })
      .def_property_readonly("meaning", [](const RuleOption& option) { return std::string(option.meaning); })
      .def_property_readonly("standard", &standard_of)
      .def(
          "check", [](const RuleOption& option, const py::object& value) { option.check(numbers_of(option, value)); },
          "Raises ConfigError for what is out of range.", py::arg("value"));
  py::class_<RuleEntry>(module, "RuleEntry", "A registered update rule.")
      .def_property_readonly("name", [](const RuleEntry& entry) { return std::string(entry.name); })
      .def_property_readonly("class_name", [](const RuleEntry& entry) { return std::string(entry.class_name); })
      .def_property_readonly("meaning", [](const RuleEntry& entry) { return std::string(entry.meaning); })
      .def_readonly("options", &RuleEntry::options)
      .def_property_readonly(
          "eight_bits", [](const RuleEntry& entry) { return entry.moments == RuleEntry::Moments::fp32_or_eight_bits; })
      .def_property_readonly("counts_steps",
                             [](const RuleEntry& entry) { return entry.steps == RuleEntry::Steps::counted; });
  module.def("update_rules", [] {
    std::vector<RuleEntry> all;
    for (const auto& entry : update_rules()) all.push_back(entry);
    return all;
  });
}

void add_rule(py::module& module) {
  py::class_<OwnedShard, std::shared_ptr<OwnedShard>>(module, "OwnedShard",
                                                      "Rows of a parameter that this rank updates.")
      .def(py::init(&make_shard), py::arg("fqn"), py::arg("unit"), py::arg("sizes"), py::arg("first_row"),
           py::arg("ranks"), py::arg("local"))
      .def_readonly("fqn", &OwnedShard::fqn)
      .def(
          "fit_of_moments",
          [](const OwnedShard& shard, const std::vector<std::string>& fp32) { return fit_of_moments(shard, fp32); },
          py::arg("fp32"));
  py::enum_<MomentFit>(module, "MomentFit")
      .value("eight_bits", MomentFit::eight_bits)
      .value("small_or_named", MomentFit::small_or_named)
      .value("cuts_blocks", MomentFit::cuts_blocks);
  py::class_<Piece>(module, "Piece",
                    "A piece of a parameter to update: [parameter, gradient, states ...] of this rank.")
      .def(py::init<std::vector<at::Tensor>, std::shared_ptr<OwnedShard>>(), py::arg("tensors"), py::arg("shard"));
  py::class_<UpdateRule>(module, "UpdateRule", "The update of an optimizer on fp32, bf16 or fp16 pieces of parameters.")
      .def(py::init([](const std::string& kind, double momentum, bool nesterov) {
             return make_update_rule({update_kind(kind), momentum, nesterov ? Nesterov::yes : Nesterov::no});
           }),
           py::arg("kind"), py::arg("momentum") = 0.0, py::arg("nesterov") = false)
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
          [](const MuonRule& rule, Model* model, const std::vector<Piece>& pieces, double lr, double weight_decay,
             int64_t step, double gradient_scale, const std::string& master) {
            update_matrices(rule, model, pieces, {.lr = lr, .weight_decay = weight_decay}, {step, 1.0, gradient_scale},
                            master_named(master));
          },
          "Of a model's matrices, by their rows of this rank; collective. Or of whole ones, without a model.",
          py::arg("model").none(true), py::arg("pieces"), py::arg("lr"), py::arg("weight_decay"), py::arg("step"),
          py::arg("gradient_scale"), py::arg("master"), py::call_guard<py::gil_scoped_release>());
  module.def("make_states", &make_named_states,
             "What a rule keeps for shards, in the books of a model: lists of (name, tensor, by block).",
             py::arg("model").none(true), py::arg("shards"), py::arg("rule"), py::arg("eight_bits"), py::arg("master"));
  module.def("scale_all", &scale_all, "Multiplies tensors in place.", py::arg("tensors"), py::arg("scale"),
             py::call_guard<py::gil_scoped_release>());
  module.def("named_as_norm", &named_as_norm, py::arg("module"), py::arg("class_name"));
  module.def(
      "check_master", [](const std::string& name) { master_named(name); }, py::arg("name"));
  module.def("clip_scale", &clip_scale, "What gradients of this norm are multiplied with.", py::arg("norm"),
             py::arg("largest"));
}

/// Of the setting loss_scale, as JSON; null: the loss is not scaled.
std::optional<LossScaleOptions> scale_options(const std::string& setting, at::ScalarType compute,
                                              at::ScalarType reduce) {
  const auto config = read_program_config({{"loss_scale", nlohmann::json::parse(setting)}});
  return config.loss_scale.resolve(Precision{.compute = compute, .reduce = reduce}.fp16());
}

LossScaleOptions grows_after_window(LossScaleOptions options) {
  options.growth = Growth::after_window;
  return options;
}

NonFiniteGradients non_finite_named(const std::string& name) {
  if (name == "stop") return NonFiniteGradients::stop;
  if (name == "skip") return NonFiniteGradients::skip;
  config_error("step", "got non_finite='{}', expected stop or skip; try stop", name);
}

py::object state_of(const StepJudge& judge) {
  if (!judge.scaler()) return py::none();
  const LossScaleState& s = judge.scaler()->state();
  return py::dict(py::arg("scale") = s.scale, py::arg("hysteresis_left") = s.hysteresis_left,
                  py::arg("steps") = s.steps, py::arg("last_overflow") = s.last_overflow);
}

void restore(StepJudge& judge, int64_t made, int64_t skipped, const py::object& scale) {
  std::optional<LossScaleState> state;
  if (!scale.is_none())
    state = {scale["scale"].cast<double>(), scale["hysteresis_left"].cast<int64_t>(), scale["steps"].cast<int64_t>(),
             scale["last_overflow"].cast<int64_t>()};
  judge.restore(made, skipped, state);
}

void add_judge(py::module& module) {
  py::class_<LossScaleOptions>(module, "LossScaleOptions", "How the loss is scaled.")
      .def("after_window", &grows_after_window, "The same, but the scale doubles a step later.");
  module.def("loss_scale_options", &scale_options, py::arg("setting"), py::arg("compute"), py::arg("reduce"));
  py::class_<Verdict>(module, "Verdict", "What becomes of a step.")
      .def_property_readonly("made", [](const Verdict& verdict) { return verdict.update == Verdict::Update::made; })
      .def_readonly("grad_norm", &Verdict::grad_norm)
      .def_readonly("gradient_scale", &Verdict::gradient_scale);
  py::class_<StepJudge>(module, "StepJudge", "Loss scale, skip rule and clipping.")
      .def(py::init([](std::optional<double> clip, std::optional<LossScaleOptions> loss_scale,
                       const std::string& non_finite, bool stop_at_smallest) {
             StepPolicy policy{.clip = clip, .loss_scale = loss_scale, .non_finite = non_finite_named(non_finite)};
             policy.at_smallest_scale = stop_at_smallest ? AtSmallestScale::stop : AtSmallestScale::skip;
             return StepJudge(policy);
           }),
           py::arg("clip"), py::arg("loss_scale"), py::arg("non_finite") = "stop", py::arg("stop_at_smallest") = true)
      .def_property_readonly("loss_scale", &StepJudge::loss_scale)
      .def_property_readonly("scales", [](const StepJudge& judge) { return judge.scaler().has_value(); })
      .def(
          "judge",
          [](StepJudge& judge, double scaled_norm, const py::function& origin) {
            return judge.judge(scaled_norm, [&] { return origin().cast<std::string>(); });
          },
          "Of gradients with this norm under the loss scale. Raises FaultError.", py::arg("scaled_norm"),
          py::arg("origin"))
      .def("scale_state", &state_of)
      .def("restore", &restore, py::arg("made"), py::arg("skipped"), py::arg("scale"));
}

}  // namespace

void add_optimizer(py::module& module) {
  add_table(module);
  add_rule(module);
  add_judge(module);
  module.def(
      "resolve_precision",
      [](const std::string& compute, std::optional<std::string> storage, std::optional<std::string> reduce,
         std::optional<std::string> master) {
        const PrecisionPolicy policy{compute, std::move(storage), std::move(reduce), std::move(master)};
        const Precision precision = resolve(policy, at::kCPU);
        return std::make_tuple(precision.compute, precision.storage, precision.reduce, name_of(precision.master),
                               note_on(policy, precision, at::kCPU));
      },
      "Compute, storage and reduce types, the master, and what is worth saying.", py::arg("compute"),
      py::arg("storage"), py::arg("reduce"), py::arg("master"));
  module.def(
      "precision_type", [](const std::string& name) { return precision_type("precision", name); }, py::arg("name"));
}

}  // namespace sherd::python
