// The cross entropy of rows of logits, and its gradient in their place; fp32, with sums in fp64.
//
//   loss of a row = log(sum exp(logits - max)) + max - logits[target]      gradient = softmax(logits) - one at the
//   target
//
// The same bits on every instruction set and wherever the rows are split. Exponentials are summed in fp32 over blocks
// of 1024, the blocks in fp64. Infinite or NaN logits make the loss NaN. Single-threaded, nothing is allocated. Cost: a
// row is read twice, and for the gradient written twice and read once more: from cache, if it fits.
#pragma once

#include <cstdint>

namespace sherd::kernels {

struct LogitRows {
  int64_t rows, vocab;
  int64_t stride;          // from a row to the next, at least vocab
  const int64_t* targets;  // [rows], each in [0, vocab) or `ignored`
  int64_t ignored;
};

/// losses[r]: of row r, 0 where its target is ignored.
void cross_entropy(const LogitRows& shape, const float* logits, double* losses);

/// The same, and the logits become their gradient times `scale`: zeros where the target is ignored.
void cross_entropy_gradient(const LogitRows& shape, double scale, float* logits, double* losses);

}  // namespace sherd::kernels
