#include "sherd/shard/schedule.h"

#include <algorithm>

#include "sherd/base/error.h"

namespace sherd {

double Schedule::hash() const {
  uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a, a unit at a time
  for (const double unit : units_) hash = (hash ^ (static_cast<uint64_t>(unit) + 1)) * 0x100000001b3ULL;
  return static_cast<double>((hash ^ units_.size()) >> 12);
}

void Schedule::compare(std::span<const double> hashes, Transport& transport,
                       const std::vector<std::string>& unit_names) const {
  if (std::all_of(hashes.begin(), hashes.end(), [&](double hash) { return hash == hashes[0]; })) return;
  const auto ranks = static_cast<size_t>(transport.size());
  const double length = static_cast<double>(units_.size());
  const std::vector<double> lengths = transport.exchange({&length, 1});
  std::vector<double> mine = units_;
  mine.resize(static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end())), -1);
  const std::vector<double> all = transport.exchange(mine);
  const auto ran = [&](size_t rank, size_t at) {
    const double unit = all[rank * mine.size() + at];
    if (unit < 0) return std::string("nothing more");
    const std::string& name = unit_names[static_cast<size_t>(unit)];
    return name.empty() ? std::string("the root") : fmt::format("unit '{}'", name);
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
