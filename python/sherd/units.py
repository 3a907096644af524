"""Modules that are units: unsharded before their forward, resharded after it.

A unit keeps its class's name and behaviour; its class becomes a subclass whose ``__call__`` does sherd's work around
the module's own. So what is compiled (``module.compile()``, or ``torch.compile`` of the block) lies inside of it.
"""
from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.distributed.fsdp import FSDPModule

from . import _C
from ._C import ConfigError
from .casting import Given
from .causes import cause_of
from .distributed import World
from .max_norm import ShorteningEmbedding
from .parameters import ShardedParameter
from .root import Options, Root, build
from .surface import HELD, Surface, Told


class UnitHandle:
    """What sherd knows of one module given to fully_shard."""

    def __init__(self, module: nn.Module, options: Options, world: World):
        self.module = weakref.ref(module)
        self.options = options
        self.world = world
        self.outer: weakref.ref[nn.Module] | None = None  # the unit around it, if any
        self.ignored: set[int] = set()
        self.converted: dict[tuple[int, str], ShardedParameter] = {}  # by module and name; until the model is built
        self.unit: _C.Unit | None = None  # once the model is built
        self.root: Root | None = None
        self.told = Told()
        self.shortening: list[ShorteningEmbedding] = []  # of its own modules
        # Of a root: what outside of forwards is seen of parameters that the strategy keeps whole.
        self.sees_whole = False
        self.gathers_uses = False  # of a root: uses of sharded parameters outside of forwards gather them

    @property
    def root_module(self) -> nn.Module:
        handle = self
        while handle.outer is not None and (outer := handle.outer()) is not None:
            handle = getattr(outer, HELD)
        return handle.module()

    def whole_copy(self, parameter: ShardedParameter) -> torch.Tensor:
        """A copy of a whole parameter of the unit, in the graph of its uses. Collective: when it returns, no rank reads
        rows of another any more."""
        unit = self.unit
        if unit.shows_whole:
            return parameter._sherd_whole.clone()
        unit.unshard()
        try:
            copy = parameter._sherd_whole.clone()
            self.world.transport.barrier()
            return copy
        finally:
            unit.reshard()

    @torch._dynamo.disable
    def ready(self) -> _C.Unit:
        if self.unit is None:
            # The stack of torch.func, which would take building for a part of the function.
            with temporarily_clear_interpreter_stack():
                build(self.root_module)
        return self.unit

    def whole_model(self) -> Root:
        """The sharded model that the unit is part of; made, where it has not run yet."""
        self.ready()
        return self.root


@functools.partial(torch._dynamo.disable, recursive=False)
def run_forward(module: nn.Module, method: Callable, args: tuple, kwargs: dict) -> Any:
    """Calls a method of a unit with its parameters whole."""
    handle = module.__dict__[HELD]
    unit = handle.unit or handle.ready()
    precision = handle.options.precision
    given = None
    unit.enter(args, kwargs)
    try:
        if precision.input_dtype is not None or precision.output_dtype is not None:
            given = Given(precision.input_dtype)
            args, kwargs = given.cast(args, kwargs)
        result = method(*args, **kwargs)
    except BaseException as error:
        unit.fail(cause_of(error))
        raise
    finally:
        if given is not None:
            given.take_back()
    unit.leave(result)
    return result if precision.output_dtype is None else given.cast_result(result, precision.output_dtype)


class ShardedModule(Surface):
    """What every module given to ``fully_shard`` is, beside its own class. See :func:`sherd.fully_shard`."""

    @functools.partial(torch._dynamo.disable, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return run_forward(self, super().__call__, args, kwargs)

    def __deepcopy__(self, memo: dict) -> Any:
        raise ConfigError("[fully_shard] got a copy of a sharded module, expected one made before it was sharded; try "
                          "copy.deepcopy before fully_shard, or load_state_dict into a second model")

    def __reduce__(self) -> Any:
        raise ConfigError("[fully_shard] got a sharded module to pickle, expected its state; try model.state_dict()")

    def unshard(self, async_op: bool = False) -> Unsharded | None:
        """Makes this unit's parameters (not those of units in it) whole, until :meth:`reshard`, the end of its next
        forward or, of a unit that is not resharded then, of the next backward. Collective where ranks do not share a
        host's memory. async_op: returns something to wait() for, as in FSDP2; the parameters are there already."""
        self.__dict__[HELD].ready().unshard()
        return Unsharded() if async_op else None

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """Before the first forward, torch's own: module.to(), half(), to_empty(). Later only what changes nothing."""
        handle = self.__dict__[HELD]
        if handle.root is None:
            return super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            probe = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            after = fn(probe)
            if (after.dtype, after.device) != (probe.dtype, probe.device):
                raise ConfigError(f"[to] got a change of parameter '{name}' from {probe.dtype} on {probe.device} to "
                                  f"{after.dtype} on {after.device} after the first forward, expected it before; "
                                  "try it before training")
        for module in self.modules():
            module._buffers.update({key: fn(value) for key, value in module._buffers.items() if value is not None})
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the parameters themselves, also where whole ones stand in their place
        between a forward and its backward."""
        handle = self.__dict__[HELD]
        if handle.root is not None:
            inside = {id(module) for module in self.modules()}
            for owner, _, shard in handle.root.places:
                if id(owner) in inside and shard.grad is not None:
                    if set_to_none:
                        shard.grad = None
                    else:
                        shard.grad.detach().zero_()
        super().zero_grad(set_to_none)

    def reshard(self) -> None:
        """Gives this unit's whole parameters up: this rank's rows are left."""
        self.__dict__[HELD].ready().reshard()


class Unsharded:
    """The handle of unshard(async_op=True)."""

    def wait(self) -> None:
        """Returns at once."""


@functools.cache
def unit_class(cls: type) -> type:
    """``cls`` with ShardedModule's methods, under its own name; a class of FSDP2's modules too."""
    return type(cls.__name__, (ShardedModule, cls, FSDPModule),
                {"__module__": cls.__module__, "__qualname__": cls.__qualname__,
                 "__doc__": cls.__doc__})


def register_forward_method(module: nn.Module, name: str) -> None:
    """Makes ``module.name(...)`` a forward of the unit too: its parameters are whole meanwhile. For ``generate`` and
    others that do not go by ``module(...)``."""
    if not isinstance(module, ShardedModule):
        raise ConfigError(f"[register_forward_method] got a {type(module).__name__} that is not sharded, "
                          "expected one given to fully_shard")
    method: Callable = getattr(module, name)

    @functools.wraps(method)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return run_forward(self, method, args, kwargs)

    setattr(module, name, forward.__get__(module))
