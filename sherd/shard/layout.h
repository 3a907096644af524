// Where the parameters of a group lie, whole and as shards.
//
// [Note: Layout] In a group's *whole buffer* each parameter lies whole, row-major, at a 256-element-aligned offset.
// Rank r's shard of a parameter is its rows by FSDP2's chunk rule: ceil(rows / ranks) rows each, later ranks less or
// none. In the group's *rank-major buffer* (gradients on their way, reduced gradients, optimizer state) the shards of
// rank 0 come first, then those of rank 1, ...: each rank's piece has the same `shard_elements`, each parameter in it
// starts at a 16-element-aligned `shard_offset`, and what the padding holds is zero for ever.
//
// A parameter that is whole on every rank (one without dimensions, where each rank updates it for itself) is laid out
// as one row a rank, all of the same values. The first is what is computed with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sherd {

/// Consecutive rows of a parameter.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;
};

/// Consecutive elements of a buffer.
struct Elements {
  int64_t first = 0;
  int64_t count = 0;
};

/// Rank r's rows of a parameter of `rows` rows by the chunk rule.
Rows rows_of_rank(int64_t rows, int rank, int ranks);

enum class Copies { one, each_rank };

struct ParameterLayout {
  std::string fqn;
  std::vector<int64_t> sizes;
  int64_t rows = 1;          // dim 0; 1 for a parameter without dimensions
  int64_t row_elements = 1;  // elements of one row
  Copies copies = Copies::one;
  int64_t offset = 0;        // in the whole buffer, in elements
  int64_t shard_offset = 0;  // in a rank's piece of the rank-major buffer, in elements

  int64_t elements() const { return rows * row_elements; }
};

struct GroupLayout {
  std::string unit;  // the unit's name in the model; "" for the root
  std::vector<ParameterLayout> parameters;
  int ranks = 1;
  int64_t whole_elements = 0;
  int64_t shard_elements = 0;

  Rows rows(size_t parameter, int rank) const { return rows_of_rank(parameters[parameter].rows, rank, ranks); }
  /// Where these rows lie in the whole buffer.
  Elements elements(size_t parameter, int rank) const;
};

/// "unit 'x'", or "the root" for the unit without a name.
std::string title_of_unit(std::string_view name);

/// A named shape.
struct NamedShape {
  std::string fqn;
  std::vector<int64_t> sizes;
  Copies copies = Copies::one;
};

GroupLayout lay_out(std::string unit, const std::vector<NamedShape>& parameters, int ranks);

/// The same parameters, of which only those `kept` have rows: what a rank-major buffer needs for these alone.
GroupLayout with_rows_of(GroupLayout layout, const std::vector<bool>& kept);

}  // namespace sherd
