#include "sherd/shard/forward_order.h"

#include <algorithm>
#include <utility>

namespace sherd {

void ForwardOrder::enter(size_t unit, size_t units) {
  // A model whose root does not run (a unit that is called by itself) begins anew now and then.
  if (unit == 0 || now_.size() > 4 * units) last_ = std::exchange(now_, {});
  now_.push_back(unit);
}

std::optional<size_t> ForwardOrder::after(size_t unit) const {
  const auto here = std::find(last_.begin(), last_.end(), unit);
  if (here == last_.end() || here + 1 == last_.end()) return std::nullopt;
  return *(here + 1);
}

std::optional<size_t> ForwardOrder::before(size_t unit) const {
  const auto here = std::find(now_.begin(), now_.end(), unit);
  if (here == now_.end() || here == now_.begin()) return std::nullopt;
  return *(here - 1);
}

void ForwardOrder::forget() noexcept {
  last_.clear();
  now_.clear();
}

}  // namespace sherd
