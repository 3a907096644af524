// A Muon step of matrices that are spread over ranks by rows, without another layout: each has an executor, the rank
// that sees all of its direction, orthogonalizes it and sends the rows back.
#pragma once

#include <span>
#include <vector>

#include "sherd/comm/transport.h"
#include "sherd/memory/ledger.h"
#include "sherd/optim/muon.h"
#include "sherd/shard/strategy.h"

namespace sherd {

/// A matrix and the rows of it that this rank updates, in pieces with gradients and momenta.
struct MuonMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<UpdatePiece> pieces;  // in the order of rows
  Hyperparameters values = {};
};

class MuonStep {
 public:
  /// `spread`: whether each rank has its own rows of the matrices by the chunk rule, or all of them. The arguments
  /// outlive it.
  MuonStep(const MuonRule& rule, Transport& transport, Ledger& ledger, Spread spread)
      : rule_(rule), transport_(transport), ledger_(ledger), spread_(spread) {}

  /// Collective, with the same matrices in the same order on all ranks. In rounds of one matrix a rank, the most
  /// expensive first. A round moves each of its matrices twice (spread whole: once) and holds three of the largest
  /// size on a rank, beside what orthogonalized() takes. Throws FaultError.
  void run(const std::vector<MuonMatrix>& matrices, const UpdateTime& time) const;

 private:
  std::vector<at::Tensor> directions(std::span<const MuonMatrix* const> round, const UpdateTime& time) const;
  void exchange_rows(std::span<const MuonMatrix* const> round, std::vector<at::Tensor>& rows) const;
  void exchange_whole(std::span<const MuonMatrix* const> round, std::vector<at::Tensor>& whole) const;
  at::Tensor orthogonal(const MuonMatrix& matrix, const at::Tensor& direction) const;
  void update(const MuonMatrix& matrix, const at::Tensor& orthogonal, const UpdateTime& time) const;

  const MuonRule& rule_;
  Transport& transport_;
  Ledger& ledger_;
  Spread spread_;
};

}  // namespace sherd
