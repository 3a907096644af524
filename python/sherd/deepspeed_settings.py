"""What a DeepSpeed configuration means, in sherd's words."""
from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from . import distributed
from ._C import ConfigError

log = logging.getLogger("sherd")
STAGES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "sgd": "sgd"}
FOLLOWED = {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
            "gradient_clipping", "optimizer", "fp16", "bf16", "communication_data_type", "steps_per_print", "zero_allow_untested_optimizer"}


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
