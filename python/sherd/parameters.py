"""How a parameter looks outside its unit's forward and backward: a DTensor of this rank's rows."""
from __future__ import annotations

import contextlib
import math
import weakref
from typing import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

from . import _C
from ._C import ConfigError, FaultError

TRAINABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)
CASTABLE = TRAINABLE[:4]  # by a policy of mixed precision
# What every backend of torch.distributed moves; anything else goes as bytes.
MOVABLE = (*TRAINABLE, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool)


class ShardedParameter(DTensor):
    """A parameter of a sharded model between its uses: ``Shard(0)``, by ``torch.chunk``'s rule, over rows that sherd owns. One
    without dimensions is whole on every rank, which all update alike.

    Everything that DTensors can do works on it; what mixes it with plain tensors raises an error that names it.
    """
    # The name in the model, what the unit computes with, the unit, and the model's root: set by fully_shard and at the first use.
    _sherd_name: str
    _sherd_unit: weakref.ref | None
    _sherd_whole: nn.Parameter | None
    _sherd_root: weakref.ref | None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "__get__" and function == DATA:
            tell(args, "note_alias")
            with torch._C.DisableTorchFunctionSubclass():
                return alias_of(args[0], function(*args))
        if is_draw(function, name, args):
            return fill_as_whole(function, args, kwargs or {})
        if name == "detach":
            tell(args, "note_alias")
        elif name.endswith("_") and not name.startswith("__") and name not in NOT_VALUES:
            tell(args, "before_write", "note_update")
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            names = ", ".join(f"'{a._sherd_name}'" for a in (*args, *(kwargs or {}).values())
                              if isinstance(a, ShardedParameter))
            raise FaultError(
                f"[shard] got parameter {names} in {name or function} with plain tensors, outside "
                "the forward of its unit, where it is sharded; try to call the unit (the module given to fully_shard), "
                "register_forward_method(), or unshard() before") from error

    def to_local(self, **options) -> torch.Tensor:
        tell((self,), "note_alias")
        return super().to_local(**options)

    def full_tensor(self, **options) -> torch.Tensor:
        return super().full_tensor(**options) if self.dtype in MOVABLE else whole_value(self)


class WholeParameter(ShardedParameter):
    """A parameter inside of GatheredParameters: whatever is done with it is done with its whole value, a plain parameter in the
    place of its rows."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(WholeParameter, lambda p: p._local_tensor, (args, kwargs or {}))
        return function(*args, **kwargs)


@contextlib.contextmanager
def shown_as(wholes: list[tuple[ShardedParameter, nn.Parameter]]) -> Iterator[None]:
    """Inside, these parameters are what stands beside them."""
    rows = [parameter._local_tensor for parameter, _ in wholes]
    try:
        for parameter, whole in wholes:
            parameter.__class__, parameter._local_tensor = WholeParameter, whole
        yield
    finally:
        for (parameter, _), own in zip(wholes, rows):
            parameter.__class__, parameter._local_tensor = ShardedParameter, own


DATA = torch.Tensor.data.__get__
NOT_VALUES = {"requires_grad_", "retain_grad_"}


# Values that depend on their place, or on a generator: of each row others on each rank.
RANDOM = {"normal_", "uniform_", "exponential_", "bernoulli_", "geometric_", "cauchy_", "log_normal_", "random_"}


def is_draw(function, name: str, args: tuple) -> bool:
    if getattr(function, "__module__", "") == torch.nn.init.__name__:
        return True
    # Where torch refuses, it shall say so.
    return name in RANDOM and isinstance(args[0], ShardedParameter) and not (torch.is_grad_enabled() and args[0].requires_grad)


def fill_as_whole(function, args: tuple, kwargs: dict) -> torch.Tensor:
    """Fills a parameter with the values that it would have if it were not sharded (and ranks had one seed): each rank fills
    a whole one, for as long as this takes, and keeps its rows."""
    tensor = args[0] if args else kwargs.pop("tensor")
    tell((tensor,), "before_write")
    whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    function(whole, *args[1:], **kwargs)
    with torch.no_grad():
        tensor._local_tensor.copy_(rows_like(whole, tensor))
    tell((tensor,), "note_update")
    return tensor


def alias_of(parameter: ShardedParameter, alias: torch.Tensor) -> torch.Tensor:
    """What parameter.data gives, which knows whose it is. (detach() gives a DTensor: state_dict() is made of these.)"""
    if isinstance(alias, DTensor):
        alias.__class__ = ShardedParameter
        alias._sherd_name, alias._sherd_whole = parameter._sherd_name, None
        alias._sherd_root = parameter.__dict__.get("_sherd_root")
    return alias


def tell(args: tuple, *methods: str) -> None:
    """Calls these methods of the models that the parameters among the arguments (or in lists of them) belong to."""
    models = set()
    for argument in args:
        for one in argument if isinstance(argument, (list, tuple)) else (argument,):
            root = isinstance(one, ShardedParameter) and one.__dict__.get("_sherd_root")
            if root and (module := root()) is not None:
                models.add(module.__dict__["_sherd_unit"].root.model)
    for model in models:
        for method in methods:
            getattr(model, method)()


def own_rows(rows: int, mesh: DeviceMesh) -> slice:
    """This rank's rows of so many along the mesh's last axis: ``torch.chunk``'s rule, by which later ranks may have fewer or
    none."""
    axis = mesh.ndim - 1
    each = -(-rows // mesh.size(axis))
    first = min(rows, each * mesh.get_local_rank(axis))
    return slice(first, min(rows, first + each))


def rows_like(whole: torch.Tensor, target: DTensor) -> torch.Tensor:
    """This rank's rows of a whole value."""
    return whole if is_whole(target) else whole[own_rows(whole.shape[0], target.device_mesh)]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, [bytes]. Of contiguous ones."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def whole_value(tensor: DTensor) -> torch.Tensor:
    """``tensor.full_tensor()`` of any type."""
    if tensor.dtype in MOVABLE or is_whole(tensor):
        return tensor.full_tensor()
    rows = tensor._local_tensor.contiguous()
    width = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    moved = over_rows(as_bytes(rows).view(rows.shape[0], width), tensor, torch.Size((tensor.shape[0], width)))
    return moved.full_tensor().view(-1).view(tensor.dtype).view(tensor.shape)


def placements_of(parameter: torch.Tensor, mesh: DeviceMesh) -> tuple[Placement, ...]:
    """Rows along the last axis. Whole on every rank is what has no dimensions, and one row of complex numbers: torch's optimizers
    look at those as real ones, which gives a DTensor of one row away."""
    whole = parameter.dim() == 0 or (parameter.is_complex() and parameter.shape[0] == 1)
    return (*[Replicate()] * (mesh.ndim - 1), Replicate() if whole else Shard(0))


def is_whole(tensor: DTensor) -> bool:
    """Whether each rank has all of it."""
    return tensor.placements[-1].is_replicate()


def spec_of(sizes: torch.Size, dtype: torch.dtype, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensorSpec:
    return DTensorSpec(mesh, placements, TensorMeta(sizes, torch.empty(sizes, device="meta").stride(), dtype))


def shard_parameter(parameter: nn.Parameter, name: str, mesh: DeviceMesh) -> ShardedParameter:
    """The DTensor of this rank's rows of ``parameter``, copied; the parameter itself gives its memory away.

    Raises ConfigError for parameters that sherd cannot shard.
    """
    check_type(parameter, name)
    if parameter.layout != torch.strided or parameter.is_quantized:
        raise ConfigError(f"[shard] got parameter '{name}' of {parameter.dtype} and layout {parameter.layout}, expected a plain "
                          "type and torch.strided; try ignored_params")
    if is_traceable_wrapper_subclass(parameter):
        raise ConfigError(f"[shard] got parameter '{name}' that is a {type(parameter).__name__}, tensors behind another one, expected "
                          "a plain tensor; try ignored_params, or codes and scales as parameters of their own")
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
                          f"{', '.join(map(str, TRAINABLE))}; try model.to(torch.float32), or requires_grad_(False) for it")


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


def over_rows(local: torch.Tensor, shard: DTensor, sizes: torch.Size | None = None) -> DTensor:
    """The DTensor over ``local`` that is sharded as ``shard``, of its shape or another: a gradient of it, a moment, a value."""
    sizes = shard.shape if sizes is None else sizes
    return DTensor(local, spec_of(sizes, local.dtype, shard.device_mesh, shard.placements), requires_grad=False)


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
