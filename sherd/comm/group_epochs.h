// How far each rank is with a parameter group, in memory that all ranks of a host map.
//
// [Note: Epochs] Per parameter group and rank there are three counters, each written by that rank alone:
//   published    how often the rank has published its rows of the parameters
//   contributed  for how many rounds its gradients lie ready in its slot
//   reduced      for how many rounds it has summed its own rows of all ranks' gradients
// A reader waits until a counter has reached what it needs (acquire); a writer advances its own (release) and wakes.
// Parameters are overwritten only after an exchange() that follows every rank's backward; a slot only after all ranks
// have reduced the round that it held.
#pragma once

#include <atomic>
#include <cstdint>

namespace sherd {

/// One rank's counters of one parameter group. See [Note: Epochs].
struct alignas(64) GroupEpochs {
  std::atomic<uint64_t> published, contributed, reduced;
  std::atomic<int64_t> slot_offset;  // in bytes: where in the rank's gradient segment the round's contribution lies
};

}  // namespace sherd
