"""Norms of a sharded model's gradients, over all ranks, and clipping by them."""
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from . import _C
from ._C import ConfigError, FaultError
from .faces import sharded_of
from .rows import local
from .units import HELD, ShardedModule


def clip_grad_norm_(model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
                    foreach: bool | None = None) -> torch.Tensor:
    """Scales the gradients of a sharded model so that their global norm is at most ``max_norm``; returns the norm
    before.

    The norm has the same bits on every rank and for every number of ranks. Collective; one exchange. torch's
    ``clip_grad_norm_(model.parameters(), ...)`` works too, at the cost of DTensor operations per parameter.

    norm_type: any order but 0, as torch's: also negative, and infinity ("inf").
    error_if_nonfinite: raises FaultError on all ranks, before anything is scaled, for a norm that is no number; it
        names where the first such gradient came from.
    foreach: may be given as to torch's; there is one way here.
    """
    order = order_of(norm_type)
    norm = gradient_norm(model, order)
    if error_if_nonfinite and not math.isfinite(norm):
        raise FaultError(f"[clip_grad_norm_] got a gradient norm of order {order:g} that is {norm}: the first that was "
                         f"not finite was {origin_of_non_finite(model)}; expected finite numbers; try "
                         "error_if_nonfinite=False to go on")
    scale_gradients(map(sharded_of, model.parameters()), _C.clip_scale(norm, max_norm))
    return torch.tensor(norm)


def order_of(norm_type: Any) -> float:
    try:
        order = float(norm_type)
    except (TypeError, ValueError):
        order = math.nan
    if math.isnan(order) or order == 0:  # torch's order 0 counts the gradients that are not 0
        raise ConfigError(f"[clip_grad_norm_] got norm_type={norm_type!r}, expected 'inf' or a number that is not 0; "
                          "try 2.0")
    return order


def gradient_norm(model: nn.Module, order: float = 2.0) -> float:
    """A norm of all gradients of a sharded model, over all ranks. Collective."""
    if not isinstance(model, ShardedModule):
        raise ConfigError(f"[clip_grad_norm_] got a {type(model).__name__} that is not sharded, "
                          "expected the module given to fully_shard last")
    return getattr(model, HELD).whole_model().model.gradient_norm(order)


def origin_of_non_finite(model: nn.Module) -> str:
    """Where the first gradient that is not finite came from, over all ranks. Collective."""
    return getattr(model, HELD).whole_model().model.origin_of_non_finite()


def scale_gradients(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Multiplies their gradients, where that changes them."""
    if scale != 1.0:
        _C.scale_all([local(parameter.grad) for parameter in parameters if parameter.grad is not None], scale)
