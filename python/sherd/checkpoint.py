"""Saving and loading: whole weights on one rank, and training state by any number of ranks.

``model.state_dict()`` of a sharded model is its DTensors, without communication: torch's distributed checkpoint reads
and writes it, also to and from FSDP2.
"""
from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from . import distributed
from ._C import ConfigError
from .progress import bar
from .root import Root
from .rows import as_bytes, over_rows, rows_like, whole_value
from .sharding import before_load
from .units import HELD, ShardedModule

LATEST = "latest"
FACTS = "sherd.json"


@distributed.in_call("full_state_dict")
def full_state_dict(model: nn.Module, *, all_ranks: bool = False,
                    without: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Whole values of all parameters and buffers by name, but for those named, on the CPU: on rank 0 (elsewhere {}), or
    on all ranks.

    Collective. Parameters are gathered one at a time: other ranks hold no more than one of them.
    """
    keep = all_ranks or distributed.world().rank == 0
    result: dict[str, torch.Tensor] = {}
    seen: dict[int, str] = {}  # tied parameters, by what they are; they are one tensor in the result too
    for name, value in bar(model.state_dict(keep_vars=True).items(), "gathering parameters"):
        if name in without:
            continue
        first = seen.setdefault(id(value), name)
        if first != name:
            if keep:
                result[name] = result[first]
            continue
        if isinstance(value, DTensor):
            value = whole_value(value.detach())
        if keep:
            result[name] = value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
        del value
    return result


@distributed.in_call("load_full_state_dict")
def load_full_state_dict(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The reverse: `state` counts on rank 0, others may pass {}. Collective; one whole parameter at a time.

    Raises ConfigError on all ranks for names and shapes that do not fit.
    """
    world = distributed.world()
    targets = model.state_dict()
    complaint = [fit(targets, state) if world.rank == 0 else ""]
    if world.size > 1:
        dist.broadcast_object_list(complaint, src=0)
    if complaint[0]:
        raise ConfigError(complaint[0])
    if isinstance(model, ShardedModule):
        before_load(model)
    with torch.no_grad():
        for name, target in bar(targets.items(), "spreading parameters"):
            if not isinstance(target, torch.Tensor):
                continue
            whole = (state[name].to(target.dtype).contiguous()
                     if world.rank == 0 else torch.empty(target.shape, dtype=target.dtype))
            if world.size > 1:
                dist.broadcast(as_bytes(whole), src=0)
            target.copy_(over_rows(rows_like(whole, target), target) if isinstance(target, DTensor) else whole)


def fit(targets: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str:
    """What does not fit, or ""."""
    missing, unknown = sorted(targets.keys() - state.keys()), sorted(state.keys() - targets.keys())
    if missing or unknown:
        return (f"[load_full_state_dict] got a state without {missing[:5]} and with unknown {unknown[:5]}, "
                "expected the names of model.state_dict()")
    for name, target in targets.items():
        if isinstance(target, torch.Tensor) and state[name].shape != target.shape:
            return (f"[load_full_state_dict] got '{name}' of shape {list(state[name].shape)}, "
                    f"expected {list(target.shape)}")
    return ""


def root_of(model: nn.Module) -> Root:
    return getattr(model, HELD).whole_model()


@distributed.in_call("save_checkpoint")
def save_training(engine: Any, folder: pathlib.Path, tag: str, client_state: dict) -> None:
    """An engine's state into folder/tag, which takes its name when it is whole."""
    world = engine.world
    target, unfinished = folder / tag, folder / f"{tag}.unfinished"
    if world.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    world.transport.barrier()
    with root_of(engine.module).shards_shown():
        model, optimizer = get_state_dict(engine.module, optimizers_of(engine))
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=unfinished)
    if world.rank == 0:
        schedule = engine.lr_scheduler
        facts = {"global_steps": engine.global_steps, "micro_steps": engine.micro_steps, "client_state": client_state,
                 "skipped_steps": engine.skipped_steps,
                 "loss_scale": engine.judge.scale_state(),
                 "lr_scheduler": schedule.state_dict() if hasattr(schedule, "state_dict") else None}
        torch.save(facts, unfinished / "facts.pt")
        (unfinished / FACTS).write_text(json.dumps({"ranks": world.size, "global_steps": engine.global_steps}))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(unfinished, target)
        (folder / f"{LATEST}.new").write_text(tag)
        os.replace(folder / f"{LATEST}.new", folder / LATEST)
    world.transport.barrier()


def saved_weights(folder: pathlib.Path, tag: str | None) -> dict[str, torch.Tensor]:
    """Whole weights of what save_training wrote, by one process alone. tag: the latest."""
    source = folder / (tag or (folder / LATEST).read_text().strip())
    stored = dcp.FileSystemReader(source).read_metadata().state_dict_metadata
    state = {name.removeprefix("model."): torch.empty(value.size, dtype=value.properties.dtype)
             for name, value in stored.items() if name.startswith("model.")}
    dcp.load({"model": state}, checkpoint_id=source, no_dist=True)
    return state


def optimizers_of(engine: Any) -> tuple:
    return () if engine.optimizer is None else (engine.optimizer,)


@distributed.in_call("load_checkpoint")
def load_training(engine: Any, folder: pathlib.Path, tag: str | None) -> tuple[str | None, dict]:
    """The reverse of save_training."""
    if tag is None:
        if not (folder / LATEST).is_file():
            return None, {}
        tag = (folder / LATEST).read_text().strip()
    source = folder / tag
    if not (source / FACTS).is_file():
        raise ConfigError(f"[load_checkpoint] got {str(source)!r}, which is no checkpoint of sherd, expected a folder "
                          f"with {FACTS}; try the folder given to save_checkpoint")
    root = root_of(engine.module)
    with root.shards_shown():
        model, optimizer = get_state_dict(engine.module, optimizers_of(engine))
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=source)
        set_state_dict(engine.module, optimizers_of(engine), model_state_dict=state["model"],
                       optim_state_dict=state["optimizer"])
    root.model.settle()
    facts = torch.load(source / "facts.pt", weights_only=True)
    engine.global_steps, engine.micro_steps = facts["global_steps"], facts["micro_steps"]
    engine.skipped_steps = facts.get("skipped_steps", 0)
    engine.judge.restore(engine.global_steps - engine.skipped_steps, engine.skipped_steps, facts.get("loss_scale"))
    if facts["lr_scheduler"] is not None:
        engine.lr_scheduler.load_state_dict(facts["lr_scheduler"])
    return str(source), facts["client_state"]
