"""Reductions over rows of which a rank may have none.

There torch raises for norms and maxima that have no value on nothing, on that rank alone, and the others wait for it. A
row that changes no result takes the place of none.
"""
from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils import _foreach_utils

# Norms, and what their order is called.
NORMS = {"linalg_vector_norm": "ord", "linalg_norm": "ord", "_foreach_norm": "ord", "norm": "p"}
LARGEST, SMALLEST = {"max", "amax"}, {"min", "amin"}
REDUCTIONS = {*NORMS, *LARGEST, *SMALLEST}


class NoRows(DTensor):
    """A gradient on a rank that has no rows of it, and what is computed from it there."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args, kwargs = with_a_row(function, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        for each in result if type(result) in (list, tuple) else (result,):
            if type(each) is DTensor:
                each.__class__ = cls
        return result


_foreach_utils._foreach_supported_types.append(NoRows)  # as DTensor is: clip_grad_norm_ takes them all at once


def with_a_row(function: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of such a reduction without empty shards; of any other function as they are."""
    name = getattr(function, "__name__", "")
    if name not in REDUCTIONS or not args or (fill := neutral(name, args, kwargs)) is None:
        return args, kwargs
    if isinstance(args[0], DTensor):
        return (filled(args[0], fill), *args[1:]), kwargs
    return ([filled(each, fill) if isinstance(each, DTensor) else each for each in args[0]], *args[1:]), kwargs


def neutral(name: str, args: tuple, kwargs: dict) -> float | None:
    """What changes nothing where rows are reduced by this function."""
    if name in NORMS:
        order = kwargs.get(NORMS[name], args[1] if len(args) > 1 else 2)
        order = float(order) if isinstance(order, (int, float)) or order in ("inf", "-inf") else 2.0
        dims = kwargs.get("dim", args[2] if len(args) > 2 else None)
        return (math.inf if order < 0 else 0.0) if over_rows_too(dims, args[0]) else None
    if not over_rows_too(kwargs.get("dim", args[1] if len(args) > 1 else None), args[0]):
        return None
    return -math.inf if name in LARGEST else math.inf


def over_rows_too(dims: Any, tensor: Any) -> bool:
    if dims is None or dims == () or not isinstance(tensor, torch.Tensor):
        return True
    return any(dim in (0, -tensor.dim()) for dim in ((dims,) if isinstance(dims, int) else dims))


def filled(tensor: DTensor, fill: float) -> DTensor:
    local = tensor._local_tensor
    if local.shape[:1] != (0,) or tensor._spec.shape[0] == 0 or not local.is_floating_point():
        return tensor
    return ARow.apply(tensor, fill)


class ARow(torch.autograd.Function):
    """In the place of none. It stays in the graph: what other ranks do there in backward may need this one."""

    @staticmethod
    def forward(ctx, tensor: DTensor, fill: float) -> DTensor:
        local = tensor._local_tensor
        row = torch.full((1, *local.shape[1:]), fill, dtype=local.dtype, device=local.device)
        return DTensor(row, tensor._spec, requires_grad=False)

    @staticmethod
    def backward(ctx, gradient: DTensor) -> tuple[DTensor, None]:
        return DTensor(gradient._local_tensor[:0], gradient._spec, requires_grad=False), None
