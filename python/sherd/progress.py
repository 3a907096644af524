"""How far something is: a bar on rank 0's terminal (by tqdm, where that is installed), else lines in the log."""
from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from . import distributed

Item = TypeVar("Item")
log = logging.getLogger("sherd")


def bar(items: Iterable[Item], what: str, **options: Any) -> Iterable[Item]:
    """`items` as they are, and where they take a second or more, how far they are."""
    if not sys.stderr.isatty() or distributed.world().rank != 0:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, leave=False, delay=1.0, **options)


def of_training(engine: Any, batches: Iterable[Item], every: int) -> Iterator[Item]:
    """See Engine.progress."""
    shown, told = bar(batches, "training"), engine.global_steps
    for batch in shown:
        yield batch
        if engine.global_steps < told + every or engine.world.rank != 0:
            continue
        told = engine.global_steps
        facts = {"loss": f"{engine.last_loss():.4f}", "norm": f"{engine.get_global_grad_norm():.3g}",
                 "lr": f"{engine.get_lr()[0]:.3g}"}
        facts |= {kind: f"{size / 2**20:.0f} MiB" for kind, size in engine.memory().items() if size}
        if hasattr(shown, "set_postfix"):
            shown.set_postfix(step=told, **facts)
        else:
            log.info("step %d: %s", told, ", ".join(f"{name} {value}" for name, value in facts.items()))
