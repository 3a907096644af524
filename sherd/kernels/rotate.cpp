#include "sherd/kernels/rotate.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sherd/kernels/rotate.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "sherd/kernels/elements_inl.h"

HWY_BEFORE_NAMESPACE();
namespace sherd::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x and out are a pair's first elements. a - b (-s) and a + b (-s) round as a + b s and a - b s do, so one formula
// serves both turns.
template <class D>
HWY_INLINE void turn_pairs(D d, const float* c, const float* s, float sign, size_t half, const float* x, float* out) {
  const auto first = hn::LoadU(d, x), second = hn::LoadU(d, x + half);
  const auto cosine = hn::LoadU(d, c), sine = hn::Mul(hn::LoadU(d, s), hn::Set(d, sign));
  hn::StoreU(hn::Sub(hn::Mul(first, cosine), hn::Mul(second, sine)), d, out);
  hn::StoreU(hn::Add(hn::Mul(second, cosine), hn::Mul(first, sine)), d, out + half);
}

void rotate_loop(const Heads& shape, const RotaryTable& table, float sign, const float* x, float* out) {
  const size_t half = static_cast<size_t>(shape.half);
  for (int64_t token = 0; token < shape.tokens; ++token) {
    const int64_t row = (table.first + token) % table.positions * shape.half;
    const float *c = table.cosines + row, *s = table.sines + row;
    for (int64_t head = 0; head < shape.heads; ++head, x += 2 * half, out += 2 * half) {
      for_elements(half, [=](auto d, size_t i) HWY_ATTR { turn_pairs(d, c + i, s + i, sign, half, x + i, out + i); });
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sherd::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sherd::kernels {

HWY_EXPORT(rotate_loop);

void rotate_halves(const Heads& shape, const RotaryTable& table, Turn turn, const float* x, float* out) {
  HWY_DYNAMIC_DISPATCH(rotate_loop)(shape, table, turn == Turn::forward ? 1.0f : -1.0f, x, out);
}

}  // namespace sherd::kernels
#endif
