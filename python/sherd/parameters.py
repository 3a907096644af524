"""How a parameter looks outside its unit's forward and backward: a DTensor of this rank's rows."""
from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_iter, tree_map_only

from ._C import ConfigError, FaultError
from .empty_shards import with_a_row
from .rows import MOVABLE, rows_like, whole_value
from .values import fill_as_whole, fitting, root_handle_of, set_data, tell, writes


class ShardedValue(DTensor):
    """What is computed from sharded parameters where they are sharded and needs a gradient, and views of them:
    weight.t(), weight[:2], a norm of weights. It knows by its name where it comes from."""
    _sherd_name: str

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if meets_a_loss(getattr(function, "__name__", ""), (args, kwargs)):
            return of_wholes(function, args, kwargs or {})
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
        names = ", ".join(f"'{name}'" for name in names_in((args, kwargs)))
        if "Sharding propagation failed" in str(error):
            raise FaultError(f"[shard] got parameter {names} in {getattr(function, '__name__', function)}, outside the "
                             "forward of its unit, where each rank has some of its rows, which do not do for it; try "
                             "full_tensor() of it, or full_parameters() around it") from error
        mixed = isinstance(error, AssertionError) and has_plain((args, kwargs))
        if "mixed torch.Tensor and DTensor" not in str(error) and not mixed:
            raise
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


NOT_COMPUTED = {"__get__", "__set__", "backward", "grad"}  # functions that make nothing of their arguments


def meets_a_loss(name: str, values) -> bool:
    """Whether a function of this name computes with a number that needs a gradient, such as a loss: it is each rank's
    own, and DTensor would take it for the same on all."""
    if name in NOT_COMPUTED or not torch.is_grad_enabled():
        return False
    return any(isinstance(t, torch.Tensor) and not isinstance(t, DTensor) and t.dim() == 0 and t.requires_grad
               for t in tree_iter(values))


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
        if meets_a_loss(name, (args, kwargs)):
            return of_wholes(function, args, kwargs or {})
        if gathers_uses((args, kwargs)) and has_plain((args, kwargs)):
            return of_wholes(function, args, kwargs or {})
        return derived(function, args, kwargs or {})

    def full_tensor(self, *, grad_placements=None) -> torch.Tensor:
        """The whole value, a copy. Collective. Its gradient counts as one of the unit's forward does:
        the mean over ranks."""
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
        rows = self._local_tensor
        given = fitting(values.to(rows.dtype), self, rows, "for the data of a gradient", ".grad = values")
        with torch.no_grad():
            rows.copy_(given)


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


def take_back(parameter: DTensor, given: torch.Tensor, rows: torch.Tensor) -> None:
    """Between steps somebody has put ``given`` in the place of a parameter's local tensor:
    its values count, its memory does not."""
    if type(parameter) is not ShardedParameter:  # whole, for a time
        return
    given = fitting(given, parameter, rows, f"as the local tensor of parameter '{parameter._sherd_name}'",
                    "to write into the one that is there")
    with torch.no_grad():
        rows.copy_(given)
    parameter._local_tensor = rows


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


# Values that depend on their place, or on a generator: of each row others on each rank.
RANDOM = {"normal_", "uniform_", "exponential_", "bernoulli_", "geometric_", "cauchy_", "log_normal_", "random_"}


def is_draw(function, name: str, args: tuple) -> bool:
    if getattr(function, "__module__", "") == torch.nn.init.__name__:
        return True
    # Where torch refuses, it shall say so.
    return (name in RANDOM and isinstance(args[0], ShardedParameter)
            and not (torch.is_grad_enabled() and args[0].requires_grad))


def alias_of(parameter: ShardedParameter, alias: torch.Tensor) -> torch.Tensor:
    """What parameter.data gives, which knows whose it is. (detach() gives a DTensor: state_dict() is made of these.)"""
    if isinstance(alias, DTensor):
        alias.__class__ = ShardedParameter
        alias._sherd_name, alias._sherd_whole = parameter._sherd_name, None
        alias._sherd_root = parameter.__dict__.get("_sherd_root")
    return alias
