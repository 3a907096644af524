"""sherd where a program expects DeepSpeed: Accelerate and transformers' Trainer run under it with no line changed.

    torchrun --nproc-per-node 2 -m sherd.as_deepspeed train.py ARGS     # in the place of: torchrun ... train.py ARGS
    torchrun --nproc-per-node 2 -m sherd.as_deepspeed -m package.module ARGS
    python -m sherd.accelerate launch --config_file config.yaml train.py ARGS       # see sherd.accelerate

The package ``deepspeed`` that the program then imports is sherd's (deepspeed_names.py): what Accelerate, transformers,
TRL, PEFT and Lightning look for in DeepSpeed 0.19.8; other names say that they are not there. Accelerate is told to
take its DeepSpeed branch (``ACCELERATE_USE_DEEPSPEED``, ZeRO stage 3 unless ``ACCELERATE_DEEPSPEED_ZERO_STAGE`` says
another).

What programs see of parameters outside of forwards: at stages 0, 1 and 2 whole, plain parameters, up to date after each
step, which may be read by one rank alone, and written: each rank's own rows count from the next forward or step on.
(With bf16 or fp16 these are the fp32 masters.) Their gradients are the optimizer's:
``deepspeed.utils.safe_get_full_grad``. At stage 3 DTensors of this rank's rows; where they meet plain tensors (an
encoder that is called by itself, a moving average) they are gathered, by all ranks together, and ``save_pretrained``
writes whole weights.

A DeepSpeed configuration means what it means in DeepSpeed 0.19.8 (docs/numerics.md says where not): what is not
followed is warned of on rank 0, and what sherd cannot do is a ConfigError.
"""
from __future__ import annotations

import functools
import logging
import os
import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import deepspeed_names, deepspeed_parameters, deepspeed_schedules, engine, hugging_face
from ._C import ConfigError
from .deepspeed_engine import DeepSpeedEngine
from .deepspeed_settings import (
    Settings,
    cast_buffers,
    cast_inputs,
    groups_of,
    keep_masters,
    native_of,
    read,
    settings_of,
)
from .deepspeed_settings import native as native
from .units import HELD

log = logging.getLogger("sherd")


def initialize(args: Any = None, model: nn.Module | None = None, optimizer: Any = None, model_parameters: Any = None,
               training_data: Any = None, lr_scheduler: Any = None, distributed_port: int | None = None,
               mpu: Any = None, dist_init_required: bool | None = None, collate_fn: Any = None, config: Any = None,
               config_params: Any = None, **_: Any) -> tuple:
    """deepspeed.initialize: see :func:`sherd.initialize`. A model without trainable parameters, and one for which
    neither the program nor the configuration has an optimizer, gets an engine that only computes."""
    document = config if config is not None else config_params
    named = getattr(args, "deepspeed_config", None)
    if document is not None and named is not None:
        raise ConfigError("[initialize] got config and args.deepspeed_config, expected one of them")
    if mpu is not None:
        raise ConfigError("[initialize] got mpu, expected none: sherd shards data-parallel training only")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"[initialize] got a {type(model).__name__} as model, expected a torch.nn.Module")
    settings = settings_of(read(named if document is None else document))
    make = (optimizer if isinstance(optimizer, torch.optim.Optimizer)
            else optimizer_on(model, model_parameters, optimizer, settings))
    if lr_scheduler is None and settings.section("scheduler"):
        lr_scheduler = functools.partial(deepspeed_schedules.schedule_of, settings.section("scheduler"))
    if settings.kind != "fp32":
        keep_masters(model)
    cast_buffers(model, settings)
    cast_inputs(model, settings)
    made, *_ = engine.initialize(model=model, config=native_of(settings), optimizer=make, lr_scheduler=lr_scheduler)
    take_over(made, settings)
    loader = None if training_data is None else made.loader(training_data, collate_fn)
    return made, made.optimizer, loader, made.lr_scheduler


def optimizer_on(model: nn.Module, model_parameters: Any, make: Any,
                 settings: Settings) -> Callable[[list], torch.optim.Optimizer | None]:
    """What makes the optimizer, of the program's function (`make`) or of the configuration,
    once the parameters are sharded."""
    groups = groups_of(model_parameters, model, settings.stage)
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if trains and not groups:
        raise ConfigError("[initialize] got model_parameters without one that is trainable, expected some; "
                          "try model.parameters()")

    def optimizer_of(_: list) -> torch.optim.Optimizer | None:
        own = make or settings.optimizer
        if own is None or not trains:
            return None
        sharded = dict(model.named_parameters())
        there = [{**group, "params": [sharded[name] for name in group["params"]]} for group in groups]
        plain = make is not None and len(there) == 1 and there[0].keys() == {"params"}
        return own(there[0]["params"] if plain else there)

    return optimizer_of


def take_over(made: engine.Engine, settings: Settings) -> None:
    """Makes a DeepSpeedEngine of an engine; its optimizer and parameters get the names that programs look for."""
    made.__class__ = DeepSpeedEngine
    made.config = settings.document
    sharded = settings.stage == 3
    handle = getattr(made.module, HELD)
    handle.sees_whole, handle.gathers_uses = not sharded, sharded
    handle.whole_model()
    made.follow(settings)
    hugging_face.save_whole()
    if sharded:
        deepspeed_parameters.name_wholes(made.module)
    if made.optimizer is not None:
        if sharded:
            made.optimizer.parameter_offload = deepspeed_parameters.ParameterOffload()
        deepspeed_parameters.remember_owner(made.optimizer)


def activate() -> None:
    """From here on, ``import deepspeed`` gets sherd's stand-in, and Accelerate takes its DeepSpeed branch."""
    deepspeed_names.install()
    deepspeed_names.MODULES["deepspeed"]["initialize"] = initialize
    deepspeed_parameters.name_attributes()
    hugging_face.follow_fsdp()
    os.environ.setdefault("ACCELERATE_USE_DEEPSPEED", "true")
    os.environ.setdefault("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    os.environ.setdefault("LOCAL_RANK", "0")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, value)
    hugging_face.use_sherd()


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1:] == ["-m"]:
        print("usage: python -m sherd.as_deepspeed [-m] PROGRAM [ARGUMENTS]", file=sys.stderr)
        sys.exit(2)
    activate()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        sys.path[0] = str(pathlib.Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # The program imports this file by its own name.
    from sherd import as_deepspeed
    as_deepspeed.main()
