#include "sherd/engine/non_finite.h"

#include <fmt/format.h>

#include <limits>
#include <vector>

#include "sherd/shard/finite.h"

namespace sherd {
namespace {

constexpr double kNone = std::numeric_limits<double>::max();

struct Parameter {
  size_t group = 0, index = 0;
};

/// All trainable parameters, in the order in which backward reaches their units.
std::vector<Parameter> in_order_of_backward(const ShardedModel& model) {
  std::vector<Parameter> all;
  for (size_t g = model.groups().size(); g-- > 0;)
    for (size_t p = model.groups()[g]->trainable() ? model.groups()[g]->parameters().size() : 0; p-- > 0;)
      all.push_back({g, p});
  return all;
}

/// The first of them of which this rank has gradients that are not finite.
double first_gradient(ShardedModel& model, const std::vector<Parameter>& parameters) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    for (size_t o = 0; o < model.store().owned().size(); ++o) {
      const at::Tensor rows = model.gradient_rows(parameters[i].group, parameters[i].index, o);
      if (!is_finite(rows.cpu())) return static_cast<double>(i);
    }
  }
  return kNone;
}

}  // namespace

std::string origin_of_non_finite(ShardedModel& model, Transport& transport) {
  const std::vector<Parameter> parameters = in_order_of_backward(model);
  const auto& output = model.first_non_finite();
  const std::vector<double> mine = {output ? static_cast<double>(output->forward) : kNone,
                                    output ? static_cast<double>(output->unit) : 0, first_gradient(model, parameters)};
  const std::vector<double> all = transport.exchange(mine);
  size_t in_forward = 0, in_backward = 0;  // ranks
  const auto of = [&](size_t rank, size_t what) { return all[rank * mine.size() + what]; };
  for (size_t rank = 0; rank < static_cast<size_t>(transport.size()); ++rank) {
    if (of(rank, 0) < of(in_forward, 0)) in_forward = rank;
    if (of(rank, 2) < of(in_backward, 2)) in_backward = rank;
  }
  if (of(in_forward, 0) != kNone)
    return fmt::format("the output of {} in forward (rank {})",
                       title_of_unit(model.units()[static_cast<size_t>(of(in_forward, 1))]->name()), in_forward);
  if (of(in_backward, 2) == kNone) return "a gradient that overflows when it is squared";
  const Parameter& parameter = parameters[static_cast<size_t>(of(in_backward, 2))];
  const GroupLayout& layout = model.groups()[parameter.group]->layout();
  return fmt::format("the gradient of '{}' in {} (rank {})", layout.parameters[parameter.index].fqn,
                     title_of_unit(layout.unit), in_backward);
}

}  // namespace sherd
