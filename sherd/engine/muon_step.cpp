#include "sherd/engine/muon_step.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "sherd/base/bytes.h"
#include "sherd/memory/buffer.h"
#include "sherd/shard/layout.h"

namespace sherd {
namespace {

constexpr std::string_view kWhat = "matrices";

double cost(const MuonMatrix& m) {
  const auto [least, most] = std::minmax({static_cast<double>(m.rows), static_cast<double>(m.columns)});
  return least * least * (2 * most + least);
}

}  // namespace

void MuonStep::run(const std::vector<MuonMatrix>& matrices, const UpdateTime& time) const {
  std::vector<const MuonMatrix*> order;
  for (const auto& matrix : matrices) order.push_back(&matrix);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return cost(*a) > cost(*b); });
  const auto ranks = static_cast<size_t>(transport_.size());
  for (size_t first = 0; first < order.size(); first += ranks) {
    const std::span round(&order[first], std::min(ranks, order.size() - first));
    std::vector<at::Tensor> rows = directions(round, time);
    if (ranks == 1) {
      rows[0] = orthogonal(*round[0], rows[0]);
    } else if (spread_ == Spread::sharded) {
      exchange_rows(round, rows);
    } else {
      exchange_whole(round, rows);
    }
    for (size_t k = 0; k < round.size(); ++k) update(*round[k], rows[k], time);
  }
}

// Of this rank's rows of each matrix: [elements].
std::vector<at::Tensor> MuonStep::directions(std::span<const MuonMatrix* const> round, const UpdateTime& time) const {
  std::vector<at::Tensor> all;
  for (const MuonMatrix* matrix : round) {
    std::vector<at::Tensor> parts;
    for (const auto& piece : matrix->pieces) parts.push_back(rule_.direction(piece, time));
    all.push_back(parts.size() == 1 ? parts[0] : at::cat(parts));
  }
  return all;
}

at::Tensor MuonStep::orthogonal(const MuonMatrix& m, const at::Tensor& direction) const {
  return orthogonalized(direction.view({m.rows, m.columns}), rule_.options().iterations).view(-1);
}

// In a buffer of one piece for each rank, rank k's piece belongs to the round's k-th matrix on the way there; on the
// way back it is what its executor has for rank k.
void MuonStep::exchange_rows(std::span<const MuonMatrix* const> round, std::vector<at::Tensor>& rows) const {
  int64_t elements = 0;
  for (const auto* m : round) elements = std::max(elements, ceil_div(m->rows, transport_.size()) * m->columns);
  const auto options = rows[0].options();
  const int64_t all = elements * transport_.size();
  const Booking booking = ledger_.book(MemoryKind::communication, "", 2 * bytes_of(all, at::kFloat));
  const at::Tensor send = at::zeros({all}, options), received = at::zeros({all}, options);
  const auto piece = [&](const at::Tensor& of, size_t rank, int64_t count) {
    return of.narrow(0, static_cast<int64_t>(rank) * elements, count);
  };
  for (size_t k = 0; k < round.size(); ++k) piece(send, k, rows[k].numel()).copy_(rows[k]);
  transport_.all_to_all(send, received, kWhat).wait();
  if (const auto me = static_cast<size_t>(transport_.rank()); me < round.size()) {
    const MuonMatrix& mine = *round[me];
    std::vector<at::Tensor> parts;
    for (int r = 0; r < transport_.size(); ++r)
      parts.push_back(
          piece(received, static_cast<size_t>(r), rows_of_rank(mine.rows, r, transport_.size()).count * mine.columns));
    const at::Tensor result = orthogonal(mine, at::cat(parts));
    int64_t first = 0;
    for (size_t r = 0; r < parts.size(); first += parts[r].numel(), ++r)
      piece(send, r, parts[r].numel()).copy_(result.narrow(0, first, parts[r].numel()));
  }
  transport_.all_to_all(send, received, kWhat).wait();
  for (size_t k = 0; k < round.size(); ++k) rows[k].copy_(piece(received, k, rows[k].numel()));
}

void MuonStep::exchange_whole(std::span<const MuonMatrix* const> round, std::vector<at::Tensor>& whole) const {
  int64_t elements = 0;
  for (const auto& one : whole) elements = std::max(elements, one.numel());
  const auto options = whole[0].options();
  const Booking booking =
      ledger_.book(MemoryKind::communication, "", bytes_of(elements * (transport_.size() + 1), at::kFloat));
  const at::Tensor mine = at::zeros({elements}, options);
  if (const auto me = static_cast<size_t>(transport_.rank()); me < round.size())
    mine.narrow(0, 0, whole[me].numel()).copy_(orthogonal(*round[me], whole[me]));
  const at::Tensor all = at::empty({elements * transport_.size()}, options);
  transport_.all_gather(mine, all, kWhat).wait();
  for (size_t k = 0; k < round.size(); ++k)
    whole[k].copy_(all.narrow(0, static_cast<int64_t>(k) * elements, whole[k].numel()));
}

void MuonStep::update(const MuonMatrix& matrix, const at::Tensor& orthogonal, const UpdateTime& time) const {
  int64_t first = 0;
  for (const auto& piece : matrix.pieces) {
    const int64_t count = piece.parameter.numel();
    if (count > 0)
      rule_.update_matrix(piece, orthogonal.narrow(0, first, count), matrix.rows, matrix.columns, matrix.values, time);
    first += count;
  }
}

}  // namespace sherd
