// In which order units run: what comes next is what came next the last time.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace sherd {

class ForwardOrder {
 public:
  /// A unit's forward begins; 0 is the root's, with which a new pass does. `units`: how many there are.
  void enter(size_t unit, size_t units);
  /// The unit after this one in the last whole pass; none where it was the last, or is new.
  std::optional<size_t> after(size_t unit) const;
  /// The unit before this one in the pass under way: the next in its backward.
  std::optional<size_t> before(size_t unit) const;
  void forget() noexcept;

 private:
  std::vector<size_t> last_, now_;
};

}  // namespace sherd
