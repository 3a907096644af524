"""Whole parameters outside forward and backward, to look at or to change."""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn

from . import distributed
from ._C import ConfigError
from .faces import seen, sharded_of, users_attributes
from .parameters import WHOLE_COPY, ShardedParameter, shown_as
from .root import Root
from .rows import as_bytes, is_whole, rows_like, whole_value
from .units import HELD, ShardedModule
from .values import root_handle_of

Places = list[tuple[nn.Module, str, ShardedParameter]]
Wholes = dict[int, tuple[ShardedParameter, nn.Parameter]]  # by the identity of the first


@contextlib.contextmanager
def full_parameters(module: nn.Module, *, writeback: bool = False, rank: int | None = None) -> Iterator[nn.Module]:
    """Inside, all parameters in ``module`` (part of a sharded model, or all of it) are whole, on every rank.

    They are copies: as much memory as these parameters on each rank. writeback: afterwards each rank takes the rows
    that it owns from its own copies; from those of ``rank``, if one is named. An exception inside leaves everything as
    it was. Collective. Raises ConfigError for a module that is not sharded.
    """
    root = root_of(module)
    inside = {id(m) for m in module.modules()}
    places = [place for place in root.places if id(place[0]) in inside]
    with shown_whole(root, places, writeback, rank):
        yield module


@contextlib.contextmanager
def GatheredParameters(params: nn.Parameter | Iterable[nn.Parameter] | nn.Module, modifier_rank: int | None = None,
                       fwd_module: nn.Module | None = None, enabled: bool = True) -> Iterator[None]:
    """DeepSpeed's: inside, these parameters and the modules that have them are whole; what ``modifier_rank`` changes
    stays.

    Also before the model has run: of what fully_shard or zero.Init has sharded. What is not sharded stays as it is.
    Collective.
    """
    if isinstance(params, nn.Module):
        params = params.parameters()
    wanted = [params] if isinstance(params, torch.Tensor) else list(params)
    wanted = [sharded_of(p) for p in wanted]
    wanted = [p for p in wanted if type(p) is ShardedParameter and isinstance(p, nn.Parameter)] if enabled else []
    roots = {id(root): root for p in wanted if (root := root_of_parameter(p)) is not None}
    keys = {id(p) for p in wanted}
    with contextlib.ExitStack() as stack:
        stack.enter_context(made_whole([p for p in wanted if root_of_parameter(p) is None], modifier_rank))
        for root in roots.values():
            places = [place for place in root.places if id(place[2]) in keys]
            wholes = stack.enter_context(shown_whole(root, places, modifier_rank is not None, modifier_rank))
            stack.enter_context(shown_as(list(wholes.values())))
        yield


@contextlib.contextmanager
def made_whole(parameters: Iterable[ShardedParameter], rank: int | None) -> Iterator[None]:
    """The same for parameters of a model that has not run."""
    wholes = whole_copies(parameters)
    with shown_as(list(wholes.values())):
        yield
    follow_flags(wholes)
    if rank is not None:
        take_rows(wholes, rank)


@contextlib.contextmanager
def shown_whole(root: Root, places: Places, writeback: bool, rank: int | None) -> Iterator[Wholes]:
    root.model.before_write()
    wholes = whole_copies(shard for _, _, shard in places)
    for owner, name, shard in places:
        owner._parameters[name] = wholes[id(shard)][1]
    try:
        yield wholes
        if writeback:
            root.model.before_update()
            take_rows(wholes, rank)
            root.model.note_update()
    finally:
        follow_flags(wholes)
        for owner, name, shard in places:
            owner._parameters[name] = seen(shard)


def whole_copies(shards: Iterable[ShardedParameter]) -> Wholes:
    """One of each, with what users have hung on it. Collective."""
    wholes = {}
    with distributed.call("full_parameters or GatheredParameters"):
        for shard in {id(shard): shard for shard in shards}.values():
            whole = nn.Parameter(whole_value(shard.detach()).clone(), shard.requires_grad)
            whole.__dict__.update(users_attributes(shard), **{WHOLE_COPY: True})
            wholes[id(shard)] = (shard, whole)
    return wholes


def follow_flags(wholes: Wholes) -> None:
    """What was frozen or unfrozen while it was whole, is."""
    for shard, whole in wholes.values():
        if whole.requires_grad != shard.requires_grad:
            shard.requires_grad_(whole.requires_grad)


def take_rows(wholes: Wholes, rank: int | None) -> None:
    """Each rank takes its rows of its own copies; of those of `rank`, if one is named.
    Of what all ranks have there is one value."""
    for shard, whole in wholes.values():
        source = 0 if rank is None and is_whole(shard) else rank
        shard._local_tensor.copy_(rows_like(from_rank(source, whole), shard))


def from_rank(rank: int | None, whole: nn.Parameter) -> torch.Tensor:
    """The values that `rank` has, if one is named."""
    values = whole.detach().contiguous()
    if rank is not None and distributed.world().size > 1:
        dist.broadcast(as_bytes(values), src=rank)
    return values


def root_of(module: nn.Module) -> Root:
    """The sharded model that a module is part of."""
    unit = next((m for m in module.modules() if isinstance(m, ShardedModule)), None)
    parameter = next((p for p in module.parameters() if isinstance(p, ShardedParameter)), None)
    if unit is None and parameter is None:
        raise ConfigError(f"[full_parameters] got a {type(module).__name__} that is not sharded, "
                          "expected a part of a sharded model")
    if unit is not None:
        return getattr(unit, HELD).whole_model()
    root = root_of_parameter(parameter)
    if root is None:
        raise ConfigError("[full_parameters] got a part of a model that has not run yet, expected one that has, or a "
                          "module given to fully_shard; try it on the whole model")
    return root


def root_of_parameter(parameter: torch.Tensor) -> Root | None:
    handle = root_handle_of(parameter) if isinstance(parameter, ShardedParameter) else None
    return None if handle is None else handle.root
