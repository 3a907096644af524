"""Which ranks there are, and how they exchange bytes.

Where ``torch.distributed`` is initialised, sherd uses its ranks and its store. Otherwise it finds the other ranks
itself, under torchrun, mpirun, srun or alone in one process, and initialises ``torch.distributed`` with them: DTensors
need it.
"""
from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import functools
import multiprocessing.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from . import _C
from ._C import ConfigError
from .causes import cause_of


class FreedMemory:
    """Memory of whole parameters whose rows were copied. malloc keeps it, in holes between the rows,
    until told to let go."""

    EVERY = 64 << 20  # bytes

    def __init__(self) -> None:
        self._bytes = 0

    def note(self, freed: int) -> None:
        self._bytes += freed
        if self._bytes >= self.EVERY:
            self._bytes = 0
            _C.return_freed_memory()


@dataclasses.dataclass(frozen=True)
class World:
    """All ranks of this job. ``transport`` is what sherd's own collectives go by, ``mesh`` is one-dimensional, its axis
    without a name as that of FSDP2's own: by other names PEFT knows tensor parallelism."""
    rank: int
    size: int
    local_rank: int
    transport: _C.Transport
    mesh: DeviceMesh
    freed: FreedMemory = dataclasses.field(default_factory=FreedMemory)


_world: World | None = None
AXES = ("replicate", "shard")


def init(*, transport: str = "auto", timeout: float = 60.0, malloc: str = "keep",
         _timeout_argument: str = "timeout=") -> World:
    """Joins the other ranks. Collective; called by :func:`fully_shard` and others where it was not called before.

    transport: ``"host"`` (shared memory: all ranks on one host), ``"gloo"``, or ``"auto"``: host where it can be.
    timeout: seconds that any wait for another rank may take.
    malloc: ``"keep"``: what tensors free stays with this process for the next ones (glibc): hardly any page
        faults after the first steps; ``"system"``: as it was. What GLIBC_TUNABLES or MALLOC_*_ say stays in any case.

    Raises ConfigError for a malformed environment or a second call, FaultError when a rank does not come.
    """
    global _world
    if _world is not None:
        raise ConfigError("[init] got a second call, expected one; try to call it before anything is sharded")
    _C.validate_transport(transport)
    if not timeout > 0:
        raise ConfigError(f"[init] got timeout={timeout!r}, expected seconds above 0; try 60")
    if malloc not in ("keep", "system"):
        raise ConfigError(f"[init] got malloc={malloc!r}, expected 'keep' or 'system'")
    if malloc == "keep":
        _C.keep_freed_memory()
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        store = dist.distributed_c10d._get_default_store()
    else:
        rank, size, local_rank, store = _C.join_world(timeout)
        store = store or dist.HashStore()
        dist.init_process_group("gloo", store=dist.PrefixStore("torch", store), rank=rank, world_size=size,
                                timeout=datetime.timedelta(seconds=timeout))
    atexit.register(_leave)
    multiprocessing.util.Finalize(None, _finish, exitpriority=0)  # processes of multiprocessing end without atexit
    ours = dist.PrefixStore("sherd", store)
    bytes_by = _C.connect(rank, size, local_rank, ours, timeout, transport, _timeout_argument)
    _world = World(rank, size, local_rank, bytes_by, DeviceMesh("cpu", torch.arange(size)))
    return _world


def hybrid_mesh(replicate: int, shard: int | None = None) -> DeviceMesh:
    """All ranks on two axes, replicate (outer) x shard; shard None: what is left. Collective."""
    size = world().size
    shard = size // replicate if shard is None else shard
    if replicate * shard != size:
        raise ConfigError(f"[mesh] got replicate={replicate} x shard={shard}, "
                          f"expected a product of {size}, the number of ranks")
    return DeviceMesh("cpu", torch.arange(size).view(replicate, shard), mesh_dim_names=AXES)


def world() -> World:
    """The ranks of this job; joins them first where that has not happened."""
    return _world or init()


@contextlib.contextmanager
def call(name: str) -> Iterator[None]:
    """Inside, ranks are in a call that all of them make. Collective; what a rank does instead is named."""
    transport = world().transport
    before = transport.say(name)
    try:
        if world().size > 1:
            transport.barrier(name)
        yield
    finally:
        transport.say(before)


def in_call(name: str) -> Callable[[Callable], Callable]:
    """Makes a function such a call."""
    def around(function: Callable) -> Callable:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with call(name):
                return function(*args, **kwargs)
        return inside
    return around


def _finish() -> None:
    """Others that still wait for this rank hear that it has finished, or what has ended it."""
    if _world is None:
        return
    error = getattr(sys, "last_value", None)
    if isinstance(error, Exception):
        _world.transport.abort(cause_of(error))
    _world.transport.finish()


def _leave() -> None:
    """A thread of Gloo's that lets go of its last tensor while the interpreter ends, ends the process by SIGABRT
    (PyTorch issue 190489): programs that forget to leave, leave here, and the threads get a moment with the
    interpreter's lock."""
    _finish()
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
    if _world is not None and _world.size > 1:
        time.sleep(0.05)
