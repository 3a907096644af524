#include "sherd/models/key_value_cache.h"

#include <ATen/ops/empty.h>

namespace sherd {

void BlockCache::add(const at::Tensor& keys, const at::Tensor& values) {
  const int64_t time = keys.size(2);
  if (!keys_.defined()) {
    const auto make = [&] { return at::empty({keys.size(0), keys.size(1), context_, keys.size(3)}, keys.options()); };
    keys_ = make();
    values_ = make();
  }
  keys_.narrow(2, length_, time).copy_(keys);
  values_.narrow(2, length_, time).copy_(values);
  length_ += time;
}

void KeyValueCache::clear() {
  for (BlockCache& block : blocks_) block.clear();
}

}  // namespace sherd
