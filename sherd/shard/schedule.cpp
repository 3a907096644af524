#include "sherd/shard/schedule.h"

#include <algorithm>

#include "sherd/base/error.h"
#include "sherd/base/fnv.h"
#include "sherd/shard/layout.h"

namespace sherd {

double Schedule::hash() const {
  Fnv hash;
  for (const double unit : units_) hash.add(static_cast<uint64_t>(unit) + 1);
  return hash.as_double();
}

void Schedule::compare(std::span<const double> hashes, Control& control,
                       const std::vector<std::string>& unit_names) const {
  if (std::all_of(hashes.begin(), hashes.end(), [&](double hash) { return hash == hashes[0]; })) return;
  const auto ranks = static_cast<size_t>(control.size());
  const double length = static_cast<double>(units_.size());
  const std::vector<double> lengths = control.exchange({&length, 1});
  std::vector<double> mine = units_;
  mine.resize(static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end())), -1);
  const std::vector<double> all = control.exchange(mine);
  const auto ran = [&](size_t rank, size_t at) {
    const double unit = all[rank * mine.size() + at];
    if (unit < 0) return std::string("nothing more");
    return title_of_unit(unit_names[static_cast<size_t>(unit)]);
  };
  for (size_t at = 0; at < mine.size(); ++at)
    for (size_t rank = 1; rank < ranks; ++rank)
      if (all[rank * mine.size() + at] != all[at])
        fault("schedule",
              "got {} on rank {} where rank 0 ran {} (forward {} of a unit since the last step), expected all ranks to "
              "run the same units in the same order; try to compute a unit that is not needed with a weight of 0",
              ran(rank, at), rank, ran(0, at), at + 1);
  SHERD_CHECK(false);  // Equal schedules have equal hashes.
}

}  // namespace sherd
