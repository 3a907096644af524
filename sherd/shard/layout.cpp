#include "sherd/shard/layout.h"

#include <algorithm>

#include <fmt/format.h>

#include "sherd/base/bytes.h"

namespace sherd {
namespace {
constexpr int64_t kWholeAlignment = 256;
constexpr int64_t kShardAlignment = 16;

// Where shards lie in a rank's piece of the rank-major buffer.
void place_shards(GroupLayout& group) {
  group.shard_elements = 0;
  for (auto& p : group.parameters) {
    p.shard_offset = group.shard_elements;
    group.shard_elements += round_up(ceil_div(p.rows, group.ranks) * p.row_elements, kShardAlignment);
  }
}

}  // namespace

Rows rows_of_rank(int64_t rows, int rank, int ranks) {
  const int64_t chunk = ceil_div(rows, ranks);
  const int64_t first = std::min(rows, chunk * rank);
  return {first, std::min(rows - first, chunk)};
}

Elements GroupLayout::elements(size_t parameter, int rank) const {
  const ParameterLayout& p = parameters[parameter];
  const Rows own = rows(parameter, rank);
  return {p.offset + own.first * p.row_elements, own.count * p.row_elements};
}

std::string title_of_unit(std::string_view name) { return name.empty() ? "the root" : fmt::format("unit '{}'", name); }

GroupLayout lay_out(std::string unit, const std::vector<NamedShape>& parameters, int ranks) {
  GroupLayout group;
  group.unit = std::move(unit);
  group.ranks = ranks;
  for (const auto& shape : parameters) {
    ParameterLayout p;
    p.fqn = shape.fqn;
    p.sizes = shape.sizes;
    p.copies = shape.copies;
    if (!shape.sizes.empty()) {
      p.rows = shape.sizes[0];
      for (size_t dim = 1; dim < shape.sizes.size(); ++dim) p.row_elements *= shape.sizes[dim];
    }
    if (p.copies == Copies::each_rank) {
      p.row_elements = p.elements();
      p.rows = ranks;
    }
    p.offset = group.whole_elements;
    group.whole_elements += round_up(p.elements(), kWholeAlignment);
    group.parameters.push_back(std::move(p));
  }
  place_shards(group);
  return group;
}

GroupLayout with_rows_of(GroupLayout layout, const std::vector<bool>& kept) {
  for (size_t p = 0; p < kept.size(); ++p)
    if (!kept[p]) layout.parameters[p].rows = 0;
  place_shards(layout);
  return layout;
}

}  // namespace sherd
