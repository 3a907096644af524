#include "sherd/step/owned_shard.h"

namespace sherd {

OwnedShards::OwnedShards(ShardedModel& model) : model_(model), pieces_(model.store().owned().size()) {
  Store& store = model_.store();
  for (size_t g = 0; g < model_.groups().size(); ++g) {
    const GroupLayout& layout = model_.groups()[g]->layout();
    first_of_group_.push_back(shards_.size());
    for (size_t p = 0; p < layout.parameters.size(); ++p) {
      const ParameterLayout& parameter = layout.parameters[p];
      for (size_t o = 0; o < pieces_; ++o) {
        const int owner = store.owned()[o];
        Rows rows = layout.rows(p, owner);
        if (parameter.copies == Copies::each_rank) rows.first = 0;  // each updates all of it
        shards_.push_back({parameter.fqn, layout.unit, parameter.sizes, rows, parameter.row_elements, layout.ranks,
                           store.rows(g, p, owner)});
        places_.push_back({g, p, o});
      }
    }
  }
}

std::vector<size_t> OwnedShards::of_this_rank() const {
  const auto own = static_cast<size_t>(pieces_ == 1 ? 0 : model_.store().index());
  std::vector<size_t> indices;
  for (size_t i = own; i < shards_.size(); i += pieces_) indices.push_back(i);
  return indices;
}

bool OwnedShards::trainable(size_t i) const { return model_.groups()[places_[i].group]->trainable(); }

at::Tensor OwnedShards::gradient(size_t i) const {
  const Place& place = places_[i];
  return model_.gradient_rows(place.group, place.parameter, place.owner);
}

bool OwnedShards::holds_first_copy() const {
  return model_.transport().rank() < model_.groups().front()->layout().ranks;
}

void OwnedShards::complete_gradients() const {
  for (size_t g = 0; g < model_.groups().size(); ++g)
    if (model_.groups()[g]->trainable() && !model_.has_gradients(g)) model_.store().gradient(g).zero_();
}

}  // namespace sherd
