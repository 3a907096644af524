"""The sharded model of a root and all units in it: made at the first use of any of them."""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import weakref
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from . import _C
from ._C import ConfigError
from .autograd import MODELS
from .distributed import World, call
from .faces import gradient_over, outside_of, seen, whole_of
from .max_norm import ShorteningEmbedding
from .parameters import ShardedParameter
from .precision import MixedPrecisionPolicy
from .rows import as_bytes, is_whole
from .surface import HELD, after_forward, tell
from .uses import Uses, check, shortening_in

log = logging.getLogger("sherd")
# The attribute of a parameter that no policy casts; it stays with the parameter as users' attributes do.
KEEPS_TYPE = "keeps_type"


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


@torch.inference_mode(False)
def build(root: nn.Module) -> Root:
    """Makes the sharded model of a root and all units in it. Collective."""
    uses = Uses(root)
    handle = getattr(root, HELD)
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
        unit_handle = getattr(module, HELD)
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


def precision_of(shard: ShardedParameter, options: Options) -> MixedPrecisionPolicy:
    """Of one parameter: its unit's, but for those that fully_shard was told to leave alone."""
    return MixedPrecisionPolicy() if getattr(shard, KEEPS_TYPE, False) else options.precision


def own_local(shard: ShardedParameter) -> torch.Tensor:
    """The local tensor, alone in its storage."""
    local = shard._local_tensor
    if not local.is_contiguous() or local.storage_offset() != 0 or local.untyped_storage().nbytes() != local.nbytes:
        shard._local_tensor = local = local.contiguous().clone()
    return local
