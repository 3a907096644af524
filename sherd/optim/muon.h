// Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024), as torch.optim.Muon: matrices
// move by their momentum, made orthogonal by five Newton-Schulz iterations.
//
//   b = lerp(b, g, 1 - momentum)          direction = lerp(g, b, momentum) with Nesterov, else b
//   p *= 1 - lr * weight_decay            p -= lr * scale(shape) * orthogonalized(direction)
//
// The momentum is by element, and stays with its rows; a direction has to be whole to be orthogonalized. So a step has
// two halves, with the caller's exchange between them: direction() on rows, orthogonalized() on a matrix, then update()
// with its rows in the place of the gradient (engine/muon_step.h does all of it).
#pragma once

#include <optional>

#include "sherd/optim/update_rule.h"

namespace sherd {

/// What the learning rate is multiplied with, for a matrix of rows x columns.
enum class MuonScale {
  original,     // sqrt(max(1, rows / columns))
  match_adamw,  // 0.2 sqrt(max(rows, columns)): moves of AdamW's size (Liu et al., "Muon is scalable", 2025)
};

inline constexpr Name<MuonScale> kMuonScaleNames[] = {{MuonScale::match_adamw, "match_adamw"},
                                                      {MuonScale::original, "original"}};

/// Of MuonOptions::products.
inline constexpr Name<std::optional<at::ScalarType>> kMuonProductNames[] = {
    {std::nullopt, "auto"}, {at::kFloat, "fp32"}, {at::kBFloat16, "bf16"}};

struct MuonOptions {
  double momentum = 0.95;
  Nesterov nesterov = Nesterov::yes;
  MuonScale scale = MuonScale::match_adamw;
  int64_t iterations = 5;
  std::optional<at::ScalarType> products = {};  // fp32 or bf16; null: bf16 where the device multiplies it by itself

  /// Throws ConfigError.
  void validate() const;
};

/// Globs: the matrices that Muon leaves to AdamW unless it is told otherwise, embeddings and heads.
inline std::vector<std::string> default_not_muon() { return {"*embed*", "*wte*", "*wpe*", "*lm_head*"}; }

/// MuonOptions::products by name: fp32, bf16, or auto for null. Throws ConfigError.
std::optional<at::ScalarType> muon_products(std::string_view name);

/// About the nearest (semi-)orthogonal matrix to [rows, columns] fp32: the same singular vectors, values of about 0.7
/// to 1.2. Products are of the type (torch: bf16), with torch's coefficients; the result is fp32. An iteration takes
/// 4 m^2 n + 2 m^3 operations, where m is the smaller side and n the larger. The same bits from every rank that has as
/// many threads.
at::Tensor orthogonalized(const at::Tensor& matrix, int64_t iterations, at::ScalarType products = at::kFloat);

class MuonRule final : public UpdateRule {
 public:
  explicit MuonRule(const MuonOptions& options);

  /// Moves the momentum of a piece, and gives what is to be orthogonalized: [n] fp32.
  at::Tensor direction(const UpdatePiece& piece, const UpdateTime& time) const;
  /// As the options say.
  at::Tensor orthogonal(const at::Tensor& direction) const;
  /// update() of rows of a rows x columns matrix, with rows of what orthogonalized() gave as the gradient.
  void update_matrix(UpdatePiece piece, const at::Tensor& orthogonal_rows, int64_t rows, int64_t columns,
                     const Hyperparameters& h, const UpdateTime& time) const;

 private:
  std::vector<StateTensor> moments(const PieceShape& shape) const override;
  void run_kernel(const Range& range, const Hyperparameters& h, const UpdateTime& time) const override;
  void run_aten(const UpdatePiece& piece, const Hyperparameters& h, const UpdateTime& time) const override;

  MuonOptions options_;
};

}  // namespace sherd
