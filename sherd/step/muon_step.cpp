#include "sherd/step/muon_step.h"

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
    std::vector<Item> round;
    for (size_t k = first; k < std::min(first + ranks, order.size()); ++k)
      round.push_back({*order[k], order[k]->pieces()});
    const Booked result =
        spread_ == Spread::sharded && ranks > 1 ? orthogonal_rows(round, time) : orthogonal_whole(round, time);
    for (size_t k = 0; k < round.size(); ++k) update(round[k], result.rows[k], time);
  }
  transport_.drop_staging();
}

// Of this rank's rows: [elements].
at::Tensor MuonStep::direction(const Item& item, const UpdateTime& time) const {
  std::vector<at::Tensor> parts;
  for (const auto& piece : item.pieces) parts.push_back(rule_.direction(piece, time));
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

at::Tensor MuonStep::orthogonal(const MuonMatrix& m, const at::Tensor& direction) const {
  return rule_.orthogonal(direction.view({m.rows, m.columns})).view(-1);
}

// In a buffer of one piece for each rank, rank k's piece belongs to the round's k-th matrix on the way there; on the
// way back it is what its executor has for rank k.
MuonStep::Booked MuonStep::orthogonal_rows(Round round, const UpdateTime& time) const {
  int64_t elements = 0;
  for (const auto& item : round)
    elements = std::max(elements, ceil_div(item.matrix.rows, transport_.size()) * item.matrix.columns);
  const auto options = round[0].pieces[0].state[0].options();
  const int64_t all = elements * transport_.size();
  Booked result{ledger_.book(MemoryKind::communication, "", 2 * bytes_of(all, at::kFloat)), {}};
  const at::Tensor send = at::zeros({all}, options), received = at::zeros({all}, options);
  const auto piece = [&](const at::Tensor& of, size_t rank, int64_t count) {
    return of.narrow(0, static_cast<int64_t>(rank) * elements, count);
  };
  for (size_t k = 0; k < round.size(); ++k) {
    const at::Tensor own = direction(round[k], time);
    piece(send, k, own.numel()).copy_(own);
    result.rows.push_back(piece(received, k, own.numel()));
  }
  transport_.all_to_all(send, received, kWhat).wait();
  if (const auto me = static_cast<size_t>(transport_.rank()); me < round.size()) {
    const MuonMatrix& mine = round[me].matrix;
    std::vector<at::Tensor> parts;
    for (int r = 0; r < transport_.size(); ++r)
      parts.push_back(
          piece(received, static_cast<size_t>(r), rows_of_rank(mine.rows, r, transport_.size()).count * mine.columns));
    const at::Tensor whole = orthogonal(mine, at::cat(parts));
    int64_t first = 0;
    for (size_t r = 0; r < parts.size(); first += parts[r].numel(), ++r)
      piece(send, r, parts[r].numel()).copy_(whole.narrow(0, first, parts[r].numel()));
  }
  transport_.all_to_all(send, received, kWhat).wait();
  return result;
}

// Every rank has all momenta, moves them all, and orthogonalizes the matrix that it is the executor of.
MuonStep::Booked MuonStep::orthogonal_whole(Round round, const UpdateTime& time) const {
  const auto me = static_cast<size_t>(transport_.rank());
  at::Tensor own;
  int64_t elements = 0;
  for (size_t k = 0; k < round.size(); ++k) {
    elements = std::max(elements, round[k].elements());
    const at::Tensor moved = direction(round[k], time);
    if (k == me) own = orthogonal(round[k].matrix, moved);
  }
  if (transport_.size() == 1) return {{}, {own}};
  const auto options = round[0].pieces[0].state[0].options();
  Booked result{ledger_.book(MemoryKind::communication, "", bytes_of(elements * (transport_.size() + 1), at::kFloat)),
                {}};
  const at::Tensor mine = at::zeros({elements}, options), all = at::empty({elements * transport_.size()}, options);
  if (own.defined()) mine.narrow(0, 0, own.numel()).copy_(own);
  transport_.all_gather(mine, all, kWhat).wait();
  for (size_t k = 0; k < round.size(); ++k)
    result.rows.push_back(all.narrow(0, static_cast<int64_t>(k) * elements, round[k].elements()));
  return result;
}

void MuonStep::update(const Item& item, const at::Tensor& orthogonal, const UpdateTime& time) const {
  const MuonMatrix& matrix = item.matrix;
  int64_t first = 0;
  for (const auto& piece : item.pieces) {
    const int64_t count = piece.parameter.numel();
    if (count > 0)
      rule_.update_matrix(piece, orthogonal.narrow(0, first, count), matrix.rows, matrix.columns, matrix.values, time);
    first += count;
  }
}

}  // namespace sherd
