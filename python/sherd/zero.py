"""DeepSpeed's names for models that are sharded while they are built, and for looking at them.

    with sherd.zero.Init():
        model = Model()                     # no rank ever holds more than a module or two whole
    engine, *_ = sherd.initialize(model=model, config=config)
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.module import register_module_module_registration_hook

from . import distributed
from .gather import GatheredParameters
from .sharding import check_mesh, keep_rows, spread_over

__all__ = ["GatheredParameters", "Init"]


@contextlib.contextmanager
def Init(module: nn.Module | None = None, *, mesh: DeviceMesh | None = None, enabled: bool = True) -> Iterator[None]:
    """Inside, a module that becomes part of another one keeps only this rank's rows of its parameters.

    module: one that is built already, and is to be sharded in the same way.
    mesh: as of :func:`sherd.fully_shard`, which is to follow with the same (as :func:`sherd.shard` or
        :func:`sherd.initialize` do), and finds these parameters sharded.

    Each rank keeps rows of the values that it drew itself: with one seed everywhere they are those of the plain model,
    also where they are drawn later (``nn.init``, ``weight.normal_()``). What else looks at whole values or changes
    parts of them does so inside of :func:`GatheredParameters`. Costs a copy of the rows. Raises ConfigError for what
    cannot be sharded.
    """
    if not enabled:
        yield
        return
    world = distributed.world()
    check_mesh(mesh, "zero3", world)
    mesh = spread_over(mesh, world)

    def registered(_: nn.Module, name: str, part: nn.Module | None) -> None:
        if part is not None:
            keep_rows(part, mesh)

    if module is not None:
        keep_rows(module, mesh)
    hook = register_module_module_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()
