"""The output projection and the cross entropy in one, without the logits."""
from __future__ import annotations

import torch

from . import _C
from ._C import ConfigError


def linear_cross_entropy(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, reduction: str = "mean",
                         scale: float = 1.0) -> torch.Tensor:
    """``F.cross_entropy(F.linear(x, weight), targets)``, in chunks of tokens: a vocabulary of logits never exists.

    x: [..., D], weight: [V, D], both fp32. targets: [...], int64; -100 adds nothing. reduction: "mean" over the targets
    that count, or "sum". ``scale`` multiplies the loss in the same pass (for accumulation, or a mean over all ranks'
    targets). Returns a 0-d fp32 tensor; differentiable in x and weight. Raises ConfigError.

    Memory: one chunk of logits (about 8 MiB) and, with gradients on, the gradients of x and weight from forward on.
    """
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"[linear_cross_entropy] got reduction={reduction!r}, expected 'mean' or 'sum'")
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise ConfigError(f"[linear_cross_entropy] got x of {x.dtype} and weight of {weight.dtype}, "
                          "expected torch.float32; try .float()")
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1] or x.shape[:-1] != targets.shape:
        raise ConfigError(f"[linear_cross_entropy] got x {list(x.shape)}, weight {list(weight.shape)} and targets "
                          f"{list(targets.shape)}, expected [..., D], [V, D] and [...]")
    if targets.dtype != torch.int64:
        raise ConfigError(f"[linear_cross_entropy] got targets of {targets.dtype}, expected torch.int64")
    flat = targets.reshape(-1)
    if reduction == "mean":
        scale = scale / max(1, int((flat != -100).sum()))
    return _C.linear_cross_entropy(x.reshape(-1, x.shape[-1]), weight, flat, scale)
