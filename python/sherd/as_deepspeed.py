"""sherd where a program expects DeepSpeed: Accelerate and transformers' Trainer run under it with no line changed.

    torchrun --nproc-per-node 2 -m sherd.as_deepspeed train.py ARGS     # in the place of: torchrun ... train.py ARGS
    torchrun --nproc-per-node 2 -m sherd.as_deepspeed -m package.module ARGS
    python -m sherd.accelerate launch --config_file config.yaml train.py ARGS       # see sherd.accelerate

The package ``deepspeed`` that the program then imports is sherd's (deepspeed_names.py): what Accelerate, transformers, TRL, PEFT
and Lightning look for in DeepSpeed 0.19.8; other names say that they are not there. Accelerate is told to take its DeepSpeed branch
(``ACCELERATE_USE_DEEPSPEED``, ZeRO stage 3 unless ``ACCELERATE_DEEPSPEED_ZERO_STAGE`` says another).

What programs see of parameters outside of forwards: at stages 0, 1 and 2 whole, plain parameters, up to date after each step, which
may be read by one rank alone, and written: each rank's own rows count from the next forward or step on. (With bf16 or fp16 these
are the fp32 masters.) Their gradients are the optimizer's: ``deepspeed.utils.safe_get_full_grad``. At stage 3 DTensors of this
rank's rows; where they meet plain tensors (an encoder that is called by itself, a moving average) they are gathered, by all ranks
together, and ``save_pretrained`` writes whole weights.

Of a DeepSpeed configuration it follows the ZeRO stage, batch sizes, accumulation, clipping, optimizer, fp16 and bf16 (with
fp32 parameters as masters; bf16 gradients that are not finite are an error, not a skipped step); what sherd does not have is a ConfigError, what only tunes DeepSpeed is logged and left.
"""
from __future__ import annotations

import json
import logging
import os
import pathlib
import runpy
import sys
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from . import deepspeed_names, deepspeed_parameters, distributed, engine, hugging_face
from ._C import ConfigError
from .deepspeed_engine import DeepSpeedEngine
from .units import HELD

log = logging.getLogger("sherd")
STAGES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "sgd": "sgd"}
FOLLOWED = {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
            "gradient_clipping", "optimizer", "fp16", "bf16", "communication_data_type", "steps_per_print", "zero_allow_untested_optimizer"}


def initialize(args: Any = None, model: nn.Module | None = None, optimizer: Any = None, model_parameters: Any = None,
               training_data: Any = None, lr_scheduler: Any = None, distributed_port: int | None = None, mpu: Any = None,
               dist_init_required: bool | None = None, collate_fn: Any = None, config: Any = None,
               config_params: Any = None, **_: Any) -> tuple:
    """deepspeed.initialize: see :func:`sherd.initialize`."""
    document = config if config is not None else config_params
    if document is None:
        document = getattr(args, "deepspeed_config", None) or {}
    if isinstance(document, (str, os.PathLike)):
        document = json.loads(pathlib.Path(document).read_text())
    if mpu is not None:
        raise ConfigError("[initialize] got mpu, expected none: sherd shards data-parallel training only")
    settings = native(document)
    if "compute" in settings.get("precision", {}):
        keep_masters(model)
    made, *rest = engine.initialize(model=model, config=settings, optimizer=optimizer, lr_scheduler=lr_scheduler,
                                    training_data=training_data, collate_fn=collate_fn)
    take_over(made, document)
    return (made, *rest)


def native(document: dict) -> dict:
    """A DeepSpeed configuration in sherd's words. Raises ConfigError for what sherd cannot do."""
    stages = document.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        if (stages.get(key) or {}).get("device", "none") not in ("none", None):
            raise ConfigError(f"[as_deepspeed] got zero_optimization.{key}, expected none; try without offloading")
    if "scheduler" in document:
        raise ConfigError("[as_deepspeed] got scheduler in the configuration, expected the program's own (lr_scheduler); try without")
    if stages.get("stage", 0) not in STAGES:
        raise ConfigError(f"[as_deepspeed] got zero_optimization.stage {stages.get('stage')!r}, expected 0 to 3; try 3")
    left = sorted(document.keys() - FOLLOWED) + [f"zero_optimization.{key}" for key in sorted(stages.keys() - {"stage"})]
    if left:
        log.info("as_deepspeed: not used: %s", ", ".join(left))
    clip = number(document.get("gradient_clipping"), 0.0)
    micro = int(number(document.get("train_micro_batch_size_per_gpu"), 1))
    config: dict[str, Any] = {
        "strategy": STAGES[stages.get("stage", 0)], "clip": clip if clip > 0 else None,
        "batch": {"rows": micro * distributed.world().size, "micro": micro,
                  "accumulate": int(number(document.get("gradient_accumulation_steps"), 1))}}
    if "optimizer" in document:
        config["optimizer"] = native_optimizer(document["optimizer"])
    return {**config, **native_precision(document)}


def keep_masters(model: nn.Module) -> None:
    """Trainable parameters as fp32: what 16-bit ones were read as is computed with, not kept."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            if isinstance(parameter, DTensor):
                raise ConfigError(f"[as_deepspeed] got parameter '{name}' of {parameter.dtype}, sharded while it was read, expected fp32: "
                                  "masters are; try dtype=torch.float32 in from_pretrained")
            parameter.data = parameter.data.float()


def native_precision(document: dict) -> dict:
    """The sections fp16 and bf16: 16-bit computation with fp32 masters, which here are the parameters themselves."""
    wire = document.get("communication_data_type")
    if wire not in (None, "fp32", "fp16", "bf16"):
        raise ConfigError(f"[as_deepspeed] got communication_data_type {wire!r}, expected fp32, fp16 or bf16; try to leave it out")
    enabled = [section for section in ("fp16", "bf16") if document.get(section, {}).get("enabled") not in (None, False, "auto")]
    if not enabled:
        return {} if wire is None else {"precision": {"reduce": wire}}
    if len(enabled) > 1:
        raise ConfigError("[as_deepspeed] got fp16.enabled and bf16.enabled, expected one of them")
    kind = enabled[0]
    config: dict[str, Any] = {"precision": {"compute": kind, "storage": "fp32", "reduce": wire or kind, "norms": "compute"}}
    if kind == "fp16":
        section = document["fp16"]
        fixed = number(section.get("loss_scale"), 0.0)
        config["loss_scale"] = fixed if fixed > 0 else {
            "initial": 2.0 ** number(section.get("initial_scale_power"), 16), "window": int(number(section.get("loss_scale_window"), 1000)),
            "hysteresis": int(number(section.get("hysteresis"), 2)), "minimum": float(number(section.get("min_loss_scale"), 1)),
            "consecutive_hysteresis": section.get("consecutive_hysteresis", False)}
    return config


def native_optimizer(section: dict) -> dict:
    kind = OPTIMIZERS.get(str(section.get("type", "AdamW")).lower())
    if kind is None:
        raise ConfigError(f"[as_deepspeed] got optimizer.type {section.get('type')!r}, expected AdamW, Adam or SGD")
    params = {key: value for key, value in section.get("params", {}).items() if value != "auto"}
    known = {"lr", "betas", "eps", "weight_decay", "momentum", "nesterov"}
    return {"type": kind, "no_decay": [], **{key: value for key, value in params.items() if key in known}}


def number(value: Any, default: float) -> float:
    return default if value in (None, "auto") else value


def take_over(made: engine.Engine, document: dict) -> None:
    """Makes a DeepSpeedEngine of an engine; its optimizer and parameters get the names that programs look for."""
    made.__class__ = DeepSpeedEngine
    made.config = document
    sharded = made.zero_optimization_partition_weights()
    handle = getattr(made.module, HELD)
    handle.sees_whole, handle.gathers_uses = not sharded, sharded
    handle.whole_model()
    hugging_face.save_whole()
    if sharded:
        deepspeed_parameters.name_wholes(made.module)
    if made.optimizer is not None:
        if sharded:
            made.optimizer.parameter_offload = deepspeed_parameters.ParameterOffload()
        deepspeed_parameters.remember_owner(made.optimizer)
        if made.scaler is not None:
            made.optimizer.overflow = False


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
