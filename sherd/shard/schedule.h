// Which units a rank has run since the last step, to compare with other ranks: a unit that only some ranks ran would
// silently count as zero for the others, or make collectives meet that do not belong together.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "sherd/comm/control.h"

namespace sherd {

class Schedule {
 public:
  void add(size_t unit) { units_.push_back(static_cast<double>(unit)); }
  void clear() { units_.clear(); }
  /// A number of at most 52 bits, so that it travels as a double; equal for equal schedules.
  double hash() const;
  /// Throws FaultError on every rank if the `hashes` of all ranks are not all equal: names the first unit (by
  /// `unit_names`) that some rank ran and another did not. Collective where they differ.
  void compare(std::span<const double> hashes, Control& control, const std::vector<std::string>& unit_names) const;

 private:
  std::vector<double> units_;
};

}  // namespace sherd
