"""How a parameter looks outside its unit's forward and backward: a DTensor of this rank's rows."""
from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter, tree_map_only

from . import _C
from ._C import ConfigError, FaultError
from .empty_shards import NoRows, with_a_row

TRAINABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)
CASTABLE = TRAINABLE[:4]  # by a policy of mixed precision
# What every backend of torch.distributed moves; anything else goes as bytes.
MOVABLE = (*TRAINABLE, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool)


class ShardedValue(DTensor):
    """What is computed from sharded parameters where they are sharded and needs a gradient, and views of them:
    weight.t(), weight[:2], a norm of weights. It knows by its name where it comes from."""
    _sherd_name: str

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return derived(function, args, kwargs or {})

    def full_tensor(self, *, grad_placements=None) -> torch.Tensor:
        """The whole value. Its gradient is the mean of all ranks', as that of a loss is."""
        if grad_placements is not None or not torch.is_grad_enabled():
            return super().full_tensor(grad_placements=grad_placements)
        return whole_and_mean(self)


class MeanOverRanks(torch.autograd.Function):
    """Its value; of its gradient, which is about to be summed over so many ranks, a part."""

    @staticmethod
    def forward(ctx, value, ranks):
        ctx.ranks = ranks
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / ctx.ranks, None


def whole_and_mean(value: DTensor) -> torch.Tensor:
    whole = DTensor.full_tensor(value, grad_placements=[Partial()] * value.device_mesh.ndim)
    return MeanOverRanks.apply(whole, value.device_mesh.size())


def derived(function, args: tuple, kwargs: dict):
    """Calls a function of DTensors; says what to do where they meet plain tensors."""
    args, kwargs = with_a_row(function, args, kwargs)
    try:
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
    except (RuntimeError, AssertionError) as error:  # the latter where a plain tensor is written to
        mixed = isinstance(error, AssertionError) and has_plain((args, kwargs))
        if "mixed torch.Tensor and DTensor" not in str(error) and not mixed:
            raise
        names = ", ".join(f"'{name}'" for name in names_in((args, kwargs)))
        if getattr(function, "__name__", "") == "copy_":
            raise FaultError(f"[shard] got a plain tensor to copy into the sharded parameter {names}, expected a "
                             "DTensor like it; try load_full_state_dict() for a whole state, or GatheredParameters() "
                             "to write whole values") from error
        raise FaultError(
            f"[shard] got parameter {names} in {getattr(function, '__name__', function)} with plain tensors, outside "
            "the forward of its unit, where it is sharded; try to call the unit (the module given to fully_shard), "
            "register_forward_method(), or for a loss: set_reshard_after_forward(False) on the unit, which then is "
            "whole from its forward to its backward") from error
    for one in result if type(result) in (tuple, list) else (result,):
        if type(one) is DTensor and (one.requires_grad or one._is_view()
                                     and getattr(function, "__name__", "") not in ALIASES):
            one.__class__ = ShardedValue
            one._sherd_name = next(names_in((args, kwargs)), "")
    return result


ALIASES = {"detach", "__get__", "alias"}  # of all of it: state dicts and .data


def has_plain(values) -> bool:
    return any(isinstance(t, torch.Tensor) and not isinstance(t, DTensor) and t.dim() > 0 for t in tree_iter(values))


def gathers_uses(values) -> bool:
    """Whether the model of these parameters is one whose program may use them anywhere."""
    first = next((t for t in tree_iter(values) if isinstance(t, ShardedParameter)), None)
    handle = None if first is None else root_handle_of(first)
    return handle is not None and handle.gathers_uses


def of_wholes(function, args: tuple, kwargs: dict):
    """Calls a function with whole parameters; of one that it changes, each rank takes its rows. Collective."""
    changes = writes(getattr(function, "__name__", ""), None)
    changed = args[0] if changes and args and isinstance(args[0], ShardedParameter) else None
    args, kwargs = tree_map_only((ShardedParameter, ShardedValue), lambda p: p.full_tensor(), (args, kwargs))
    result = function(*args, **kwargs)
    if changed is None:
        return result
    with torch.no_grad():
        changed._local_tensor.copy_(rows_like(args[0], changed))
    tell((changed,), "note_update")
    return changed


def names_in(values) -> Iterator[str]:
    """Of the sharded parameters that these come from."""
    return (t._sherd_name for t in tree_iter(values) if isinstance(t, (ShardedParameter, ShardedValue)))


class ShardedParameter(DTensor):
    """A parameter of a sharded model between its uses: ``Shard(0)``, by ``torch.chunk``'s rule, over rows that sherd
    owns. One without dimensions is whole on every rank, which all update alike.

    Everything that DTensors can do works on it; what mixes it with plain tensors raises an error that names it.
    """
    # The name in the model, what the unit computes with, the unit, and the model's root: set by fully_shard and at the
    # first use.
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
        if name == "__set__" and function == SET_DATA and isinstance(args[0], nn.Parameter):
            return set_data(*args)
        if is_draw(function, name, args):
            return fill_as_whole(function, args, kwargs or {})
        if name == "detach":
            tell(args, "note_alias")
        elif writes(name, kwargs):
            tell((*args, (kwargs or {}).get("out")), "before_write", "note_update")
        # The first looks at one parameter, the second at all.
        if gathers_uses((args, kwargs)) and has_plain((args, kwargs)):
            return of_wholes(function, args, kwargs or {})
        return derived(function, args, kwargs or {})

    def full_tensor(self, *, grad_placements=None) -> torch.Tensor:
        """The whole value, a copy. Collective. Its gradient counts as one of the unit's forward does: the mean over
        ranks."""
        if self.dtype not in MOVABLE:
            return whole_value(self)
        if grad_placements is not None or not torch.is_grad_enabled() or not self.requires_grad:
            return super().full_tensor(grad_placements=grad_placements)
        unit = self._sherd_unit and self._sherd_unit()
        handle = None if unit is None else unit.__dict__["_sherd_unit"]
        if handle is None or handle.unit is None or self._sherd_whole.dtype != self.dtype:
            return whole_and_mean(self)
        return handle.whole_copy(self)

    def set_(self, *_, **__):
        raise ConfigError(f"[shard] got set_() of parameter '{self._sherd_name}', whose memory is sherd's, expected "
                          "other values in it; try copy_(), or parameter.data = values")

    def to_local(self, **options) -> torch.Tensor:
        tell((self,), "note_alias")
        return super().to_local(**options)


class ShardedGradient(DTensor):
    """The reduced gradient of a parameter: this rank's rows."""

    @property
    def data(self) -> DTensor:
        return DATA(self)

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        given = values._local_tensor if isinstance(values, DTensor) else values
        if given.shape != self._local_tensor.shape or isinstance(values,
                                                                 DTensor) and values.placements != self.placements:
            raise ConfigError(f"[shard] got sizes {list(values.shape)} for the data of a gradient, expected this "
                              f"rank's rows, {list(self._local_tensor.shape)}, or a DTensor sharded as it is; "
                              "try .grad = values")
        with torch.no_grad():
            self._local_tensor.copy_(given)


_foreach_utils._foreach_supported_types.append(ShardedGradient)  # as DTensor is: clip_grad_norm_ takes them all at once


class WholeParameter(ShardedParameter):
    """A parameter inside of GatheredParameters: whatever is done with it is done with its whole value, a plain
    parameter in the place of its rows."""

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


def set_data(parameter: ShardedParameter, values: torch.Tensor) -> None:
    """``parameter.data = values``: a DTensor that is sharded as the parameter, or this rank's rows. They are copied."""
    rows = parameter._local_tensor
    same_spread = not isinstance(values, DTensor) or (values.shape == parameter.shape
                                                      and values.placements == parameter.placements)
    given = values._local_tensor if isinstance(values, DTensor) else values
    if not same_spread or given.shape != rows.shape or given.dtype != rows.dtype:
        raise ConfigError(f"[shard] got {values.dtype} of sizes {list(values.shape)} for the data of parameter "
                          f"'{parameter._sherd_name}', expected {rows.dtype}: this rank's rows, {list(rows.shape)}, or "
                          "a DTensor sharded as it is; try parameter.copy_(), or module.to() before the first forward")
    tell((parameter,), "before_write")
    with torch.no_grad():
        rows.copy_(given)
    tell((parameter,), "note_update")


def take_back(parameter: DTensor, given: torch.Tensor, rows: torch.Tensor) -> None:
    """Between steps somebody has put ``given`` in the place of a parameter's local tensor: its values count, its memory
    does not."""
    if type(parameter) is not ShardedParameter:  # whole, for a time
        return
    if given.shape != rows.shape or given.dtype != rows.dtype:
        raise ConfigError(f"[shard] got {given.dtype} of sizes {list(given.shape)} as the local tensor of parameter "
                          f"'{parameter._sherd_name}', expected {rows.dtype} of {list(rows.shape)}; "
                          "try to write into the one that is there")
    with torch.no_grad():
        rows.copy_(given)
    parameter._local_tensor = rows


def rows_of_gradient(gradient: torch.Tensor, parameter: ShardedParameter) -> torch.Tensor:
    """This rank's. DTensor gives gradients of parameters that were used as they are in other placements too."""
    if not isinstance(gradient, DTensor):
        return gradient
    with torch.no_grad():
        return gradient.redistribute(placements=parameter.placements)._local_tensor


def whole_guest(given: torch.Tensor, shard: ShardedParameter) -> torch.Tensor:
    """What a unit computes with where a program has put ``given`` in the place of a parameter
    (torch.func.functional_call)."""
    if isinstance(given, DTensor):
        return given.full_tensor() if isinstance(given, (ShardedParameter, ShardedValue)) else whole_and_mean(given)
    if getattr(given, WHOLE_COPY, False) and torch.is_grad_enabled() and given.requires_grad:
        raise ConfigError(f"[full_parameters] got a forward with gradients while '{shard._sherd_name}' stands there "
                          "whole, as a copy whose gradient would be lost, expected it outside; "
                          "try torch.no_grad() around it")
    return given


WHOLE_COPY = "_sherd_whole_copy"  # the attribute of what full_parameters shows
DATA = torch.Tensor.data.__get__
SET_DATA = torch.Tensor.data.__set__
NOT_VALUES = {"requires_grad_", "retain_grad_"}
IN_PLACE = {"__setitem__",
            *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor",
                                          "lshift", "rshift"))}


def writes(name: str, kwargs: dict | None) -> bool:
    """Whether a function of this name changes tensors that it is given."""
    if name.startswith("__"):
        return name in IN_PLACE
    return name.endswith("_") and name not in NOT_VALUES or bool(kwargs) and kwargs.get("out") is not None


# Values that depend on their place, or on a generator: of each row others on each rank.
RANDOM = {"normal_", "uniform_", "exponential_", "bernoulli_", "geometric_", "cauchy_", "log_normal_", "random_"}


def is_draw(function, name: str, args: tuple) -> bool:
    if getattr(function, "__module__", "") == torch.nn.init.__name__:
        return True
    # Where torch refuses, it shall say so.
    return name in RANDOM and isinstance(args[0],
                                         ShardedParameter) and not (torch.is_grad_enabled() and args[0].requires_grad)


def fill_as_whole(function, args: tuple, kwargs: dict) -> torch.Tensor:
    """Fills a parameter with the values that it would have if it were not sharded (and ranks had one seed): each rank
    fills a whole one, for as long as this takes, and keeps its rows."""
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


def root_handle_of(parameter: torch.Tensor):
    """The UnitHandle of the sharded model that a parameter belongs to; None before the model's first use."""
    root = parameter.__dict__.get("_sherd_root")
    module = None if root is None else root()
    return None if module is None else module.__dict__["_sherd_unit"]


def tell(args: tuple, *methods: str) -> None:
    """Calls these methods of the models that the parameters among the arguments (or in lists of them) belong to."""
    models = set()
    for argument in args:
        for one in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(one, ShardedParameter) and (handle := root_handle_of(one)) is not None:
                models.add(handle.root.model)
    for model in models:
        for method in methods:
            getattr(model, method)()


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


# The attribute of a sharded parameter that holds what is seen of it outside of forwards, where that is another.
SEEN = "_sherd_seen"


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


def over_rows(local: torch.Tensor, shard: DTensor, sizes: torch.Size | None = None) -> DTensor:
    """The DTensor over ``local`` that is sharded as ``shard``, of its shape or another: a gradient of it, a moment, a
    value."""
    sizes = shard.shape if sizes is None else sizes
    return DTensor(local, spec_of(sizes, local.dtype, shard.device_mesh, shard.placements), requires_grad=False)


def gradient_over(local: torch.Tensor, shard: DTensor) -> DTensor:
    """The gradient over this rank's rows of it."""
    gradient = over_rows(local, shard)
    gradient.__class__ = NoRows if local.shape[:1] == (0,) else ShardedGradient
    return gradient


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
