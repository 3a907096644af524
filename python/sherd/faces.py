"""What stands for a parameter: its sharded form, made out of a plain one; the whole one that its unit computes with;
what a program sees outside of forwards, where that is another."""
from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import _C
from ._C import ConfigError, FaultError
from .empty_shards import NoRows
from .parameters import ShardedGradient, ShardedParameter
from .rows import TRAINABLE, over_rows, own_rows, placements_of, spec_of

# The attribute of a sharded parameter that holds what is seen of it outside of forwards, where that is another.
SEEN = "_sherd_seen"


def shard_parameter(parameter: nn.Parameter, name: str, mesh: DeviceMesh) -> ShardedParameter:
    """The DTensor of this rank's rows of ``parameter``, copied; the parameter itself gives its memory away.

    Raises ConfigError for parameters that sherd cannot shard.
    """
    check_type(parameter, name)
    if parameter.layout != torch.strided or parameter.is_quantized:
        raise ConfigError(f"[shard] got parameter '{name}' of {parameter.dtype} and layout {parameter.layout}, "
                          "expected a plain type and torch.strided; try ignored_params")
    if is_traceable_wrapper_subclass(parameter):
        raise ConfigError(f"[shard] got parameter '{name}' that is a {type(parameter).__name__}, tensors behind "
                          "another one, expected a plain tensor; "
                          "try ignored_params, or codes and scales as parameters of their own")
    rows = slice(None) if placements_of(parameter, mesh)[-1].is_replicate() else own_rows(parameter.shape[0], mesh)
    local = (parameter.detach()[rows] if parameter.dim() > 0 else parameter.detach()).contiguous().clone()
    sharded = sharded_over(local, parameter, mesh, name)
    if parameter.device.type == "cpu":
        sharded._sherd_whole = parameter
    parameter._sherd_sharded = sharded  # no weak reference: module.to() does not like it
    if parameter.device.type != "meta":
        _C.release_memory(parameter)
    return sharded


def check_type(parameter: torch.Tensor, name: str) -> None:
    """What is frozen may be of any."""
    if parameter.requires_grad and parameter.dtype not in TRAINABLE:
        raise ConfigError(f"[shard] got trainable parameter '{name}' of {parameter.dtype}, expected "
                          f"{', '.join(map(str, TRAINABLE))}; "
                          "try model.to(torch.float32), or requires_grad_(False) for it")


def sharded_over(local: torch.Tensor, like: torch.Tensor, mesh: DeviceMesh, name: str) -> ShardedParameter:
    """The parameter over these rows, of the shape and type of ``like`` and with what users have hung on it."""
    spec = spec_of(like.shape, like.dtype, mesh, placements_of(like, mesh))
    sharded = ShardedParameter(local, spec, requires_grad=like.requires_grad)
    sharded._is_param = True
    sharded.__dict__.update(users_attributes(like))
    sharded._sherd_name, sharded._sherd_whole, sharded._sherd_unit, sharded._sherd_root = name, None, None, None
    return sharded


def users_attributes(tensor: torch.Tensor) -> dict:
    return {k: v for k, v in tensor.__dict__.items() if not k.startswith(("_sherd", "_local", "_spec"))}


def whole_of(sharded: ShardedParameter, dtype: torch.dtype) -> nn.Parameter:
    """What a unit computes with: the parameter that was sharded, or one of the type that is computed with."""
    whole = sharded._sherd_whole
    if whole is None or whole.dtype != dtype or whole.device != sharded.device:
        like = torch.empty(0, dtype=dtype, device=sharded.device)
        whole = nn.Parameter(_C.unbacked(list(sharded.shape), like), sharded.requires_grad)
        whole.__dict__.update(users_attributes(sharded))
        sharded._sherd_whole = whole
    whole.requires_grad_(sharded.requires_grad)
    return whole


def outside_of(sharded: ShardedParameter, whole: nn.Parameter) -> nn.Parameter:
    """What is seen of a parameter that the strategy keeps whole: what its unit computes with, or where that is a cast,
    another one over the store's memory."""
    outside = whole
    if whole.dtype != sharded.dtype:
        outside = nn.Parameter(_C.unbacked(list(sharded.shape), torch.empty(0, dtype=sharded.dtype)),
                               sharded.requires_grad)
        outside.__dict__.update(users_attributes(sharded))
        if sharded.requires_grad:
            outside.register_hook(lambda _: refuse_gradient(sharded))
    outside._sherd_sharded, outside._sherd_name = sharded, sharded._sherd_name
    setattr(sharded, SEEN, outside)
    return outside


def refuse_gradient(sharded: ShardedParameter) -> None:
    raise FaultError(f"[shard] got a gradient of parameter '{sharded._sherd_name}' by a use outside of its unit's "
                     "forward, which computes with a cast of it, expected none; "
                     "try to call the model, or torch.no_grad()")


def seen(parameter: torch.Tensor) -> torch.Tensor:
    """What a program sees of a sharded parameter outside of forwards."""
    return getattr(parameter, SEEN, parameter)


def sharded_of(parameter: torch.Tensor) -> torch.Tensor:
    """What the optimizer has of a parameter that a program sees."""
    return getattr(parameter, "_sherd_sharded", parameter)


def gradient_over(local: torch.Tensor, shard: DTensor) -> DTensor:
    """The gradient over this rank's rows of it."""
    gradient = over_rows(local, shard)
    gradient.__class__ = NoRows if local.shape[:1] == (0,) else ShardedGradient
    return gradient
