"""Which rows of a sharded tensor are this rank's, DTensors over the memory where they lie, and whole values of them."""
from __future__ import annotations

import math

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

TRAINABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)
CASTABLE = TRAINABLE[:4]  # by a policy of mixed precision
# What every backend of torch.distributed moves; anything else goes as bytes.
MOVABLE = (*TRAINABLE, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool)


def own_rows(rows: int, mesh: DeviceMesh) -> slice:
    """This rank's rows of so many along the mesh's last axis: ``torch.chunk``'s rule, by which later ranks may have
    fewer or none."""
    axis = mesh.ndim - 1
    each = -(-rows // mesh.size(axis))
    first = min(rows, each * mesh.get_local_rank(axis))
    return slice(first, min(rows, first + each))


def rows_like(whole: torch.Tensor, target: DTensor) -> torch.Tensor:
    """This rank's rows of a whole value."""
    return whole if is_whole(target) else whole[own_rows(whole.shape[0], target.device_mesh)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def placements_of(parameter: torch.Tensor, mesh: DeviceMesh) -> tuple[Placement, ...]:
    """Rows along the last axis. Whole on every rank is what has no dimensions, and one row of complex numbers: torch's
    optimizers look at those as real ones, which gives a DTensor of one row away."""
    whole = parameter.dim() == 0 or (parameter.is_complex() and parameter.shape[0] == 1)
    return (*[Replicate()] * (mesh.ndim - 1), Replicate() if whole else Shard(0))


def is_whole(tensor: DTensor) -> bool:
    """Whether each rank has all of it."""
    return tensor.placements[-1].is_replicate()


def spec_of(sizes: torch.Size, dtype: torch.dtype, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensorSpec:
    return DTensorSpec(mesh, placements, TensorMeta(sizes, torch.empty(sizes, device="meta").stride(), dtype))


def over_rows(local: torch.Tensor, shard: DTensor, sizes: torch.Size | None = None) -> DTensor:
    """The DTensor over ``local`` that is sharded as ``shard``, of its shape or another:
    a gradient of it, a moment, a value."""
    sizes = shard.shape if sizes is None else sizes
    return DTensor(local, spec_of(sizes, local.dtype, shard.device_mesh, shard.placements), requires_grad=False)


def rows_of_gradient(gradient: torch.Tensor, parameter: DTensor) -> torch.Tensor:
    """This rank's. DTensor gives gradients of parameters that were used as they are in other placements too."""
    if not isinstance(gradient, DTensor):
        return gradient
    with torch.no_grad():
        return gradient.redistribute(placements=parameter.placements)._local_tensor


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, [bytes]. Of contiguous ones."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def whole_value(tensor: DTensor) -> torch.Tensor:
    """``tensor.full_tensor()`` of any type."""
    if tensor.dtype in MOVABLE or is_whole(tensor):
        return DTensor.full_tensor(tensor)
    rows = tensor._local_tensor.contiguous()
    width = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    moved = over_rows(as_bytes(rows).view(rows.shape[0], width), tensor, torch.Size((tensor.shape[0], width)))
    return moved.full_tensor().view(-1).view(tensor.dtype).view(tensor.shape)
