// A Muon step of matrices that are spread over ranks by rows, without another layout: each has an executor, the rank
// that sees all of its direction, orthogonalizes it and sends the rows back.
#pragma once

#include <functional>
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
  std::function<std::vector<UpdatePiece>()> pieces;  // in the order of rows; asked for in the matrix's own round
  Hyperparameters values = {};
};

class MuonStep {
 public:
  /// `spread`: whether each rank has its own rows of the matrices by the chunk rule, or all of them. The arguments
  /// outlive it.
  MuonStep(const MuonRule& rule, Transport& transport, Ledger& ledger, Spread spread)
      : rule_(rule), transport_(transport), ledger_(ledger), spread_(spread) {}

  /// Collective, with the same matrices in the same order on all ranks. In rounds of one matrix a rank, the most
  /// expensive first. A round moves each of its matrices twice (spread whole: once). Beside what orthogonalized() takes
  /// it holds on a rank four of the largest size and what the transport keeps (spread whole: as many as there are
  /// ranks, and two). Throws FaultError.
  void run(const std::vector<MuonMatrix>& matrices, const UpdateTime& time) const;

 private:
  /// Some of the round's matrices, and what their memory is booked as.
  struct Booked {
    Booking booking;
    std::vector<at::Tensor> rows;  // this rank's of each matrix, or all: 1-D
  };
  /// A matrix in its round.
  struct Item {
    const MuonMatrix& matrix;
    std::vector<UpdatePiece> pieces;
    int64_t elements() const { return matrix.rows * matrix.columns; }
  };
  using Round = std::span<const Item>;

  at::Tensor direction(const Item& item, const UpdateTime& time) const;
  Booked orthogonal_rows(Round round, const UpdateTime& time) const;
  Booked orthogonal_whole(Round round, const UpdateTime& time) const;
  at::Tensor orthogonal(const MuonMatrix& matrix, const at::Tensor& direction) const;
  void update(const Item& item, const at::Tensor& orthogonal, const UpdateTime& time) const;

  const MuonRule& rule_;
  Transport& transport_;
  Ledger& ledger_;
  Spread spread_;
};

}  // namespace sherd
