"""Modules that are units: unsharded before their forward, resharded after it.

A unit keeps its class's name and behaviour; its class becomes a subclass whose ``__call__`` does sherd's work around
the module's own. So what is compiled (``module.compile()``, or ``torch.compile`` of the block) lies inside of it.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from . import _C
from ._C import ConfigError
from .autograd import MODELS
from .casting import Given
from .causes import cause_of
from .distributed import World, call
from .max_norm import ShorteningEmbedding, check_alone
from .parameters import (
    ShardedParameter,
    WholeParameter,
    as_bytes,
    check_type,
    gradient_over,
    is_whole,
    outside_of,
    seen,
    whole_of,
)
from .precision import MixedPrecisionPolicy
from .surface import HELD, Surface, Told, after_forward, tell

log = logging.getLogger("sherd")
# The attribute of a parameter that no policy casts; it stays with the parameter as users' attributes do.
KEEPS_TYPE = "keeps_type"


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


@dataclasses.dataclass
class Options:
    """How a unit is sharded."""
    strategy: str
    reshard_after_forward: bool | None
    persistent_below: int
    mesh: DeviceMesh  # whose last axis the parameters are spread along
    precision: MixedPrecisionPolicy = MixedPrecisionPolicy()

    @property
    def replicate(self) -> int:
        return self.mesh.size(0) if self.mesh.ndim == 2 else 1


class Root:
    """A whole sharded model: made at the first forward of any of its units."""

    def __init__(self, model: _C.Model, world: World, places: list[tuple[nn.Module, str, ShardedParameter]]):
        self.model = model
        MODELS.add(model)
        self.places = places  # where each parameter is seen
        self.elsewhere: set[int] = set()  # parameters of optimizers that are no business of this model
        self.shortening: list[tuple[ShorteningEmbedding, ShardedParameter]] = []

    def shorten(self) -> None:
        """Embeddings with max_norm: see max_norm.py. Collective where there are any."""
        for embedding, shard in self.shortening:
            embedding.shorten(shard)

    @contextlib.contextmanager
    def shards_shown(self) -> Iterator[None]:
        """Inside, programs see every parameter sharded."""
        for owner, name, shard in self.places:
            owner._parameters[name] = shard
        try:
            yield
        finally:
            for owner, name, shard in self.places:
                owner._parameters[name] = seen(shard)


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
        """Of the parameters themselves, also where whole ones stand in their place between a forward and its
        backward."""
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


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class Uses:
    """All parameters of a model with the units and places that use them."""

    def __init__(self, root: nn.Module):
        self.modules: list[nn.Module] = []  # the units, parents first
        self.names: list[str] = []
        self.parents: list[int] = []
        self.places: dict[int, list[tuple[nn.Module, str]]] = {}  # by id of the parameter
        self.parameters: dict[int, DTensor] = {}
        self.fqns: dict[int, str] = {}
        self.unit_of: dict[int, int] = {}
        self._visited: dict[int, int] = {}  # modules with their units
        self._seen: set[tuple[int, str]] = set()
        self._visit(root, "", 0)

    def _visit(self, module: nn.Module, name: str, unit: int) -> None:
        if isinstance(module, ShardedModule):
            if id(module) in self._visited:
                unit = self._visited[id(module)]
            else:
                self.modules.append(module)
                self.names.append(name)
                self.parents.append(unit)
                unit = self._visited[id(module)] = len(self.modules) - 1
        ignored = getattr(self.modules[unit], HELD).ignored
        for key, parameter in module._parameters.items():
            if parameter is None or id(parameter) in ignored:
                continue
            self._use(module, key, joined(name, key), parameter, unit)
        for key, child in module._modules.items():
            if child is not None:
                self._visit(child, joined(name, key), unit)

    def _use(self, module: nn.Module, key: str, fqn: str, parameter: nn.Parameter, unit: int) -> None:
        if not isinstance(parameter, nn.Parameter):  # torch.func.functional_call has put it there for this forward
            parameter = getattr(self.modules[unit], HELD).converted.get((id(module), key), parameter)
        if not isinstance(parameter, DTensor):
            raise ConfigError(f"[fully_shard] got parameter '{fqn}', which was not there when its unit was sharded, "
                              "expected a model that is whole by then; try fully_shard after all modules are added, or "
                              "ignored_params; and a forward of the model's own before torch.func.functional_call with "
                              "nn.Parameters")
        if id(parameter) not in self.parameters:
            self.parameters[id(parameter)] = parameter
            self.fqns[id(parameter)] = fqn
            self.unit_of[id(parameter)] = unit
            self.places[id(parameter)] = []
        self.unit_of[id(parameter)] = self._lowest_common(self.unit_of[id(parameter)], unit)
        if (id(module), key) not in self._seen:
            self._seen.add((id(module), key))
            self.places[id(parameter)].append((module, key))

    def _lowest_common(self, a: int, b: int) -> int:
        while a != b:  # parents come first
            a, b = (self.parents[a], b) if a > b else (a, self.parents[b])
        return a


def build(root: nn.Module) -> Root:
    """Makes the sharded model of a root and all units in it. Collective."""
    uses = Uses(root)
    handle: UnitHandle = getattr(root, HELD)
    world, options = handle.world, handle.options
    check(uses)
    check_same_on_all_ranks(uses, options, world)
    shortening = shortening_in(uses)
    plans, all_places = [], []
    for index, module in enumerate(uses.modules):
        members = [key for key, unit in uses.unit_of.items() if unit == index]
        places, planned = [], []
        for key in members:
            shard, fqn = uses.parameters[key], uses.fqns[key]
            shard.__class__ = ShardedParameter  # module.to() and the like may have left a plain DTensor
            if not hasattr(shard, "_sherd_whole"):
                shard._sherd_whole = None
            other = shard.__dict__.get("_sherd_root")
            if other is not None and other() not in (None, root):
                raise ConfigError(f"[fully_shard] got parameter '{fqn}' that another sharded model has too (as "
                                  f"'{shard._sherd_name}'), expected one model around both; "
                                  "try fully_shard on a module that contains them")
            shard._sherd_name, shard._sherd_unit, shard._sherd_root = fqn, weakref.ref(module), weakref.ref(root)
            precision = precision_of(shard, getattr(module, HELD).options)
            whole, local = whole_of(shard, precision.compute_type(shard)), own_local(shard)
            if is_whole(shard) and world.size > 1:
                dist.broadcast(as_bytes(local), src=0)
            outside = outside_of(shard, whole) if handle.sees_whole else None
            planned.append(_C.Parameter(fqn=fqn, whole=whole, shard=shard, local=local,
                                         reduce=precision.reduce_type(shard),
                                         copies=_C.Copies.each_rank if is_whole(shard) else _C.Copies.one,
                                        outside=outside))
            places += [_C.Place(parameters=owner._parameters, name=name, whole=whole,
                                shard=shard if outside is None else outside)
                       for owner, name in uses.places[key]]
            all_places += [(owner, name, shard) for owner, name in uses.places[key]]
        unit_handle: UnitHandle = getattr(module, HELD)
        if unit_handle.options.mesh != options.mesh:
            raise ConfigError(f"[fully_shard] got unit '{uses.names[index]}' on mesh {unit_handle.options.mesh} in a "
                              f"model on {options.mesh}, expected one mesh; try to give it to every fully_shard")
        default = _C.AfterForward.reshard if index != 0 else _C.AfterForward.keep
        reshard = unit_handle.options.reshard_after_forward
        unit_handle.unit = _C.Unit(places)
        plans.append(_C.UnitPlan(unit=unit_handle.unit, name=uses.names[index], parent=uses.parents[index],
                                 parameters=planned,
                                 after_forward=default if reshard is None else after_forward(reshard)))
    try:
        model = _C.Model(units=plans, transport=world.transport, strategy=options.strategy,
                         persistent_below=options.persistent_below, replicate=options.replicate,
                         name=type(root).__name__, make_gradient=gradient_over)
    except BaseException:
        for module in uses.modules:
            getattr(module, HELD).unit = None
        raise
    for warning in model.warnings:
        if world.rank == 0:
            log.warning("%s", warning)
    result = Root(model, world, all_places)
    result.shortening = shortening
    for owner, name, shard in all_places:
        if owner._parameters[name] is shard:  # else a guest, for this forward
            owner._parameters[name] = seen(shard)
    for module in uses.modules:
        getattr(module, HELD).root = result
        getattr(module, HELD).converted.clear()
    for module in uses.modules:
        tell(getattr(module, HELD))
    return result


def shortening_in(uses: Uses) -> list[tuple[ShorteningEmbedding, ShardedParameter]]:
    """The embeddings with max_norm and their parameters."""
    found = []
    for module in uses.modules:
        for embedding in getattr(module, HELD).shortening:
            key = id(embedding.module._parameters["weight"])
            if key in uses.parameters:
                check_alone(uses.fqns[key], len(uses.places[key]))
                found.append((embedding, uses.parameters[key]))
    return found


def precision_of(shard: ShardedParameter, options: Options) -> MixedPrecisionPolicy:
    """Of one parameter: its unit's, but for those that fully_shard was told to leave alone."""
    return MixedPrecisionPolicy() if getattr(shard, KEEPS_TYPE, False) else options.precision


def own_local(shard: ShardedParameter) -> torch.Tensor:
    """The local tensor, alone in its storage."""
    local = shard._local_tensor
    if not local.is_contiguous() or local.storage_offset() != 0 or local.untyped_storage().nbytes() != local.nbytes:
        shard._local_tensor = local = local.contiguous().clone()
    return local


def check(uses: Uses) -> None:
    whole = next((uses.fqns[key] for key, p in uses.parameters.items() if type(p) is WholeParameter), None)
    if whole is not None:
        raise ConfigError(f"[fully_shard] got a first forward inside of GatheredParameters of '{whole}', expected one "
                          "before it; try model.unshard() and model.reshard() first")
    on_meta = [uses.fqns[key] for key, p in uses.parameters.items() if p.device.type == "meta"]
    if on_meta:
        raise ConfigError("[fully_shard] got parameters on the meta device at the first forward: "
                          f"{', '.join(on_meta[:8])}{' and more' if len(on_meta) > 8 else ''}, expected values; try "
                          "model.to_empty(device='cpu') and an init function, or load_state_dict")
    for key, parameter in uses.parameters.items():
        check_type(parameter, uses.fqns[key])


def check_same_on_all_ranks(uses: Uses, options: Options, world: World) -> None:
    """Ranks with different models would wait for each other for ever, or sum what does not belong together."""
    if world.size == 1:
        return
    mine = [f"strategy {options.strategy}", f"mesh {tuple(options.mesh.shape)}"]
    mine += [f"unit '{name}'" for name in uses.names]
    mine += [f"parameter '{uses.fqns[key]}' {list(p.shape)} {p.dtype} {'trainable' if p.requires_grad else 'frozen'}"
             for key, p in uses.parameters.items()]
    everyone: list[list[str]] = [[] for _ in range(world.size)]
    with call("the first use of a sharded model"):
        dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        for here, there in itertools.zip_longest(everyone[0], theirs, fillvalue="nothing more"):
            if here != there:
                raise ConfigError(f"[fully_shard] got {there} on rank {rank} and {here} on rank 0, expected the same "
                                  "model on all ranks; try to build it from the same configuration everywhere")
