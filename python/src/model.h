// A sharded Python model: units whose parameters the user's optimizer sees as DTensors over the store's own rows.
//
// [Note: Windows] After a backward that reduces, the DTensors' .grad are views of the store's reduced gradients.
// Whether the next one adds to them or starts anew is read from .grad itself, as autograd does it: None starts anew,
// what is there (also if the user put it there) is added to. Gradients that somebody still holds when they start anew
// are left to him, and the store makes new ones.
//
// [Note: Whole outside] Where the strategy keeps parameters whole, a program may see whole, plain parameters outside
// of forwards as well: `whole` itself, or another over the store's memory where `whole` is a cast. They are up to date
// after settle(). What a program writes to them counts from the next forward or update on: each rank takes the rows
// that it owns from its own.
//
// [Note: Freezing] requires_grad may change between steps, of the DTensors or of the whole parameters where those are
// shown: the next forward or backward follows it (roles.cpp). Adapters may be switched off and on for another forward.
// A parameter that is frozen keeps its place for a gradient until kSettled backwards have gone by without another
// change, so that turns of freezing and unfreezing cost nothing; one that is unfrozen gets a place at once. What
// no_sync() holds of a parameter that was frozen since is reduced all the same.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "python/src/model_plan.h"
#include "python/src/unit.h"
#include "sherd/shard/sharded_model.h"
#include "sherd/step/non_finite.h"
#include "sherd/step/owned_shard.h"

namespace sherd::python {

/// Of flags, as a number that travels.
double hash_of(const std::vector<bool>& flags);

class Model {
 public:
  /// Collective. Values are those of the local tensors, whose memory is replaced.
  Model(std::vector<UnitPlan> units, std::shared_ptr<Transport> transport, const ModelOptions& options,
        MakeGradient make_gradient);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// Before any forward or use of whole parameters, outside backward: rows that were changed are published.
  void entering_forward();
  /// Before any forward of a unit: also what was frozen or unfrozen since the outermost one began counts in it.
  void entering_forward(const UnitState& unit);
  void count_open(int change) { open_ += change; }
  /// A forward ended with an exception. Where it was the outermost, all ranks drop the step, and learn where it began.
  void failed_in_forward(const std::string& unit, const std::string& cause);

  /// Waits until no rank reads the parameters of the last step any more. Collective.
  void before_update();
  /// The same, where this rank has read any since it last waited.
  void before_write();
  /// Global norm, of any order but 0, of the gradients in .grad: the same bits on all ranks and for any number of them.
  /// Collective.
  double gradient_norm(double order);
  /// Which unit or parameter was the first that was not finite, over all ranks; after a norm that was not. Collective.
  std::string origin_of_non_finite() { return sherd::origin_of_non_finite(*core_->model); }
  /// Parameters that are seen whole outside are up to date. Collective.
  void settle();
  /// This rank's rows have new values: the next forward publishes them.
  void note_update() { updated_ = true; }
  /// This rank's rows can be changed from here on by ways that nothing here sees.
  void note_alias() { aliased_ = true; }

  /// This rank's rows of a parameter, by the DTensor that optimizers see; null for one that is not the model's.
  std::shared_ptr<OwnedShard> shard_of(const at::Tensor& parameter) const;
  /// The ranks that rows are spread over, and the books of this one.
  Transport& shard_transport() { return core_->model->shard_transport(); }
  Ledger& ledger() { return core_->ledger; }

  /// Before a backward from these tensors, until end_expected(): exceptions that end it come to failed_in_backward().
  void expect_backward(const std::vector<at::Tensor>& roots);
  void end_expected() { --expected_; }
  /// An exception has ended a backward: all ranks drop the step, if the model was in it. `has_parameters`: it was to
  /// come to the model's parameters, if it had not begun with them yet.
  void failed_in_backward(const std::string& cause, const py::function& has_parameters);
  /// The reduced gradients of these of its parameters, for whom this rank has whole ones (or None): DTensors that no
  /// later backward touches, None for what no rank has. What .grad holds stays as it is. Collective.
  std::vector<py::object> reduce(const std::vector<at::Tensor>& shards,
                                 const std::vector<std::optional<at::Tensor>>& gradients);
  Gradients gradients() const { return core_->model->course().gradients(); }
  void set_gradients(const UnitState& unit, Gradients gradients) {
    core_->model->course().set_gradients(unit, gradients);
  }
  void set_gradients(Gradients gradients) { core_->model->course().set_gradients(gradients); }
  void set_divisor(size_t g, double divisor) { core_->model->store().set_divisor(g, divisor); }
  /// Bytes held on this rank, by kind.
  std::map<std::string, int64_t> memory() const;
  const std::vector<std::string>& warnings() const { return core_->model->warnings(); }

 private:
  /// What must live as long as any tensor over its memory.
  struct Core {
    std::shared_ptr<Transport> transport;
    Ledger ledger;
    std::vector<std::shared_ptr<Unit>> units;
    std::unique_ptr<ShardedModel> model;
  };
  struct Face {
    Parameter parameter;
    py::object shard = {}, rows = {};  // the parameter and its local tensor as Python has them
    at::Tensor buffer = {};            // a view of the store's gradient, where it has a place
    py::object gradient = {};          // the DTensor over it, or over a copy of the parameter's type
    Py_ssize_t references = 0;
    Unit* unit = nullptr;
    at::Tensor before = {};  // what .grad held when this backward began, where it is not in the buffer
    bool had = false;        // whether it held anything
    int64_t shard_version = 0, local_version = 0;  // when they were published last
    int64_t outside_version = 0;
    c10::Storage outside_memory = {};
  };

  void make_face(size_t g, size_t p, Parameter parameter);
  void recover();
  bool rows_have_changed() const;
  bool reclaim_rows();
  void remember_versions();
  // outside.cpp
  void show_outside(size_t g);
  bool is_written(const Face& face) const;
  bool written_outside() const;
  void take_written();
  void follow_outside();
  // roles.cpp
  Role role(size_t g, size_t p) const { return core_->model->groups()[g]->roles()[p]; }
  bool takes_part(size_t g, size_t p) const { return role(g, p) >= Role::held; }
  bool wants_gradient(size_t g, size_t p) const;
  const Parameter* first_with_other_requires_grad() const;
  std::vector<bool> wanted_gradients() const;
  bool agree_on_changes(bool mine);
  void compare_wanted(std::span<const double> hashes);
  void follow_requires_grad();
  void set_roles();
  void follow_in_backward();
  void end_leaving_out();
  // windows.cpp
  void make_gradients(size_t g);
  void begin_backward();
  void broke_backward();
  void end_backward();
  bool held_elsewhere(size_t g) const;
  void renew(size_t g);
  at::Tensor local_gradient(const Face& face) const;
  void take_over(Face& face);
  void call_reduced_hooks(const std::vector<bool>& seen);
  std::vector<bool> seen_by_any_rank();
  void show_gradient(Face& face);

  std::shared_ptr<Core> core_;
  MakeGradient make_gradient_;
  std::vector<std::vector<Face>> faces_;  // by group and parameter
  std::optional<OwnedShards> shards_;
  std::unordered_map<const at::TensorImpl*, size_t> places_;  // in shards_, of the DTensors
  std::vector<size_t> storage_users_;  // by group: of its gradients' storage, when nobody else holds them
  int replicate_;
  std::string name_;
  int open_ = 0;             // forwards under way
  int expected_ = 0;         // backwards that Python has begun
  bool broken_ = false;      // an exception ended such a one
  std::string failure_;      // where the exception began that is on its way out of them
  bool sees_whole_ = false;  // parameters are seen whole outside
  bool updated_ = false, aliased_ = false;
  bool has_read_ = true;              // since this rank last waited for the others
  bool has_reduced_ = false;          // since the last forward
  bool in_end_ = false;               // in end_backward()
  bool holding_ = false;              // gradients, for a backward that reduces
  int unsettled_ = 0;                 // backwards until places for gradients that are not used are given up
  double wanted_hash_ = 0;            // of wanted_gradients(), when they were agreed on last
  std::vector<at::Tensor> left_out_;  // whole parameters that were frozen after the forward of this backward
};

}  // namespace sherd::python
