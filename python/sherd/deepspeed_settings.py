"""What a DeepSpeed configuration means, in sherd's words.

A key that is left out means what it means in DeepSpeed 0.19.8: gradients are clipped at 1.0, "Adam" is AdamW without
weight decay.
"""
from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from . import distributed, optim
from ._C import ConfigError
from .deepspeed_keys import check_keys, enabled, given, warn
from .precision import cast

STAGES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
CLIP = 1.0  # where gradient_clipping is left out
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
# Of torch.optim: what it updates by element, which rows of a parameter do not change.
BY_ELEMENT = ("SGD", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")


@dataclasses.dataclass
class Settings:
    """A document, checked."""
    document: dict
    stage: int
    rows: int  # of one micro-batch on one rank
    accumulate: int
    clip: float  # 0: no clipping
    kind: str  # what is computed with: "fp32", "fp16", "bf16"
    optimizer: Callable[[list], Optimizer] | None  # of parameter groups
    ranks: int = dataclasses.field(default_factory=lambda: distributed.world().size)

    @property
    def steps_per_print(self) -> float | None:
        return self.document.get("steps_per_print")

    @property
    def managed(self) -> bool:
        """Whether the engine counts micro-batches; else each step() is one."""
        return self.document.get("managed_gradient_accumulation", True)

    @property
    def skips_non_finite(self) -> bool:
        """Whether a step whose gradients are not finite is left out."""
        if self.kind == "bf16":
            return (self.document.get("bf16") or {}).get("check_grad_overflow", True) is not False
        return self.stage > 0 or self.kind == "fp16"

    def section(self, name: str) -> dict:
        return self.document.get(name) or {}


def read(document: Any) -> dict:
    """Of a dict, a JSON file, or JSON in URL-safe base64. Raises ConfigError."""
    if isinstance(document, dict):
        return document
    if document is None:
        raise ConfigError("[initialize] got no configuration, expected one; "
                          "try config={'train_batch_size': 8, ...} or a JSON file")
    text, what = str(document), f"{str(document)[:80]!r}"
    try:
        if os.path.exists(text):
            return json.loads(pathlib.Path(text).read_text(), object_pairs_hook=without_doubles)
        return json.loads(base64.urlsafe_b64decode(text).decode(), object_pairs_hook=without_doubles)
    except ValueError as error:
        raise ConfigError(f"[initialize] got {what} as configuration, which cannot be read ({error}), expected a dict "
                          "or a JSON file; try one without comments") from error


def without_doubles(pairs: list[tuple[str, Any]]) -> dict:
    keys = [key for key, _ in pairs]
    if doubles := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{doubles[0]!r} is there twice")
    return dict(pairs)


def settings_of(document: dict) -> Settings:
    """Raises ConfigError for what DeepSpeed 0.19.8 refuses, and for what sherd cannot do."""
    document = dict(document)
    stages = document.get("zero_optimization") or {}
    document["zero_optimization"] = {"stage": 1} if stages is True else dict(stages)
    if "bfloat16" in document:
        document.setdefault("bf16", document.pop("bfloat16"))
    check_keys(document)
    stage = document["zero_optimization"].get("stage", 0)
    if stage not in STAGES:
        raise ConfigError(f"[as_deepspeed] got zero_optimization.stage {stage!r}, expected 0 to 3; try 3")
    rows, accumulate = batch_of(document)
    return Settings(document, int(stage), rows, accumulate, float(number(document.get("gradient_clipping"), CLIP)),
                    kind_of(document), optimizer_of(document["optimizer"]) if document.get("optimizer") else None)


def native(document: dict) -> dict:
    """A DeepSpeed configuration as one of :func:`sherd.initialize`, but for optimizer and scheduler."""
    return native_of(settings_of(document))


def native_of(settings: Settings) -> dict:
    # Stages 0 and 1 add up a rank's own gradients and reduce the sum, as DeepSpeed: the same order, the same bits.
    return {"strategy": STAGES[settings.stage], "clip": settings.clip if settings.clip > 0 else None,
            "batch": {"rows": settings.rows * settings.ranks, "micro": settings.rows, "accumulate": settings.accumulate,
                      "reduce": "last" if settings.stage < 2 and settings.managed else "every"},
            **native_precision(settings)}


def number(value: Any, default: float) -> float:
    """"auto" is left for DeepSpeed by programs that do not know better, and means the default."""
    return value if given(value) else default


def batch_of(document: dict) -> tuple[int, int]:
    """Rows of a micro-batch and micro-batches of a step: two of three numbers give the third,
    and all three must agree."""
    ranks = distributed.world().size
    whole, rows, accumulate = (None if not given(document.get(key)) else int(document[key]) for key in (
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"))
    if whole is None:
        rows, accumulate = rows or 1, accumulate or 1
        whole = rows * accumulate * ranks
    elif rows is not None:
        accumulate = whole // rows // ranks if accumulate is None else accumulate
    else:
        accumulate = accumulate or 1
        rows = whole // ranks // accumulate
    if min(whole, rows, accumulate) < 1 or whole != rows * accumulate * ranks:
        raise ConfigError(f"[as_deepspeed] got train_batch_size {whole}, expected train_micro_batch_size_per_gpu "
                          f"{rows} x gradient_accumulation_steps {accumulate} x {ranks} ranks; "
                          "try to leave one of them out")
    return rows, accumulate


def kind_of(document: dict) -> str:
    """What is computed with."""
    on = [section for section in ("fp16", "bf16") if enabled(document.get(section))]
    if len(on) > 1:
        raise ConfigError("[as_deepspeed] got fp16.enabled and bf16.enabled, expected one of them")
    kind = on[0] if on else "fp32"
    types = document.get("data_types") or {}
    wanted = types.get("param_dtype")
    if given(wanted) and NAMES.get(wanted, wanted) != kind:
        raise ConfigError(f"[as_deepspeed] got data_types.param_dtype {wanted!r}, expected {kind!r}, as the sections "
                          "fp16 and bf16 say; try to leave it out")
    return kind


def native_precision(settings: Settings) -> dict:
    """16-bit computation with fp32 masters, which here are the parameters themselves."""
    wire = settings.document.get("communication_data_type")
    wire = wire.lower() if isinstance(wire, str) else wire
    if wire not in (None, *TYPES):
        raise ConfigError(f"[as_deepspeed] got communication_data_type {wire!r}, expected fp32, fp16 or bf16; "
                          "try to leave it out")
    if settings.kind == "fp32":
        return {} if wire is None else {"precision": {"reduce": wire, "cast_inputs": False}}
    section = settings.section(settings.kind)
    config: dict[str, Any] = {"precision": {"compute": settings.kind, "storage": "fp32",
                                            "reduce": wire or settings.kind, "norms": "compute", "cast_inputs": False}}
    if settings.kind == "fp16":
        fixed = number(section.get("loss_scale"), 0.0)
        # Without ZeRO, DeepSpeed has no hysteresis.
        config["loss_scale"] = fixed if fixed > 0 else {
            "initial": 2.0 ** number(section.get("initial_scale_power"), 16),
            "window": int(number(section.get("loss_scale_window"), 1000)),
            "hysteresis": int(number(section.get("hysteresis"), 2)) if settings.stage > 0 else 1,
            "minimum": float(number(section.get("min_loss_scale"), 1)),
            "consecutive_hysteresis": section.get("consecutive_hysteresis") is True}
    return config


def keep_masters(model: nn.Module) -> None:
    """Trainable parameters as fp32: what 16-bit ones were read as is computed with, not kept."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            if isinstance(parameter, DTensor):
                raise ConfigError(f"[as_deepspeed] got parameter '{name}' of {parameter.dtype}, sharded while it was "
                                  "read, expected fp32: masters are; try dtype=torch.float32 in from_pretrained")
            parameter.data = parameter.data.float()


def cast_inputs(model: nn.Module, settings: Settings) -> None:
    """Gives the model its inputs in the type that it computes with, unless fp16.auto_cast is false. DeepSpeed does so
    where that is true; elsewhere fp32 inputs fail there at 16-bit weights, while programs for Accelerate give them.
    What goes from block to block stays."""
    kind, asked = TYPES[settings.kind], settings.section("fp16").get("auto_cast")
    if settings.kind == "fp32" or asked is False:
        return

    def as_computed(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        found = {t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
                 and t.is_floating_point()} - {kind}
        if not found:
            return args, kwargs
        if not asked:
            warn(f"[as_deepspeed] the model's inputs of {', '.join(sorted(map(str, found)))} are cast to {kind}, which "
                 "DeepSpeed leaves to the program; try to cast there what it is to get otherwise")
        return cast((args, kwargs), kind)

    model.register_forward_pre_hook(as_computed, with_kwargs=True)


def cast_buffers(model: nn.Module, settings: Settings) -> None:
    """As data_types.buffer_dtype says."""
    name = settings.section("data_types").get("buffer_dtype")
    if not given(name):
        return
    if NAMES.get(name, name) not in TYPES:
        raise ConfigError(f"[as_deepspeed] got data_types.buffer_dtype {name!r}, expected fp32, fp16 or bf16")
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(TYPES[NAMES.get(name, name)])


def groups_of(model_parameters: Iterable | None, model: nn.Module, stage: int) -> list[dict]:
    """What is to be trained, as groups whose "params" are names in the model: of all of it, or of parameters, (name,
    parameter) pairs or groups of them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = list(model.parameters() if model_parameters is None else model_parameters)
    groups = [dict(group) for group in listed] if listed and isinstance(listed[0], dict) else [{"params": listed}]
    for group in groups:
        members = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        members = [member[1] if isinstance(member, tuple) else member for member in members]
        if strange := [tuple(member.shape) for member in members if id(member) not in names]:
            raise ConfigError(f"[initialize] got model_parameters with one of sizes {strange[0]} that is not the "
                              "model's, expected its own; try model.parameters(), before it is changed")
        # Stages above 0 decide for good what is trained; 0 leaves it to the gradients.
        group["params"] = [names[id(member)] for member in members if stage == 0 or member.requires_grad]
    return [group for group in groups if group["params"]]


def optimizer_of(section: dict) -> Callable[[list], Optimizer]:
    """A function that makes the optimizer of a section "optimizer", with DeepSpeed's defaults."""
    kind, params = str(section.get("type")), dict(section.get("params") or {})
    if unset := [key for key, value in params.items() if value == "auto"]:
        raise ConfigError(f"[as_deepspeed] got optimizer.params.{unset[0]} 'auto', expected a value: only Trainer and "
                          "Accelerate fill it in; try to leave it out")
    if "max_grad_norm" in params:
        raise ConfigError("[as_deepspeed] got optimizer.params.max_grad_norm, expected none; try gradient_clipping")
    if kind.lower() in ("adam", "adamw"):
        return adam_of(kind, params)
    by_element = {name.lower(): name for name in BY_ELEMENT}
    if kind.lower() not in by_element:
        raise ConfigError(f"[as_deepspeed] got optimizer.type {kind!r}, which sherd has not, expected Adam, AdamW or "
                          f"one of torch.optim that works by element ({', '.join(BY_ELEMENT)}); "
                          "try AdamW, or an optimizer of your own")
    return maker(kind, getattr(torch.optim, by_element[kind.lower()]), params)


def adam_of(kind: str, params: dict) -> Callable[[list], Optimizer]:
    """torch's own where torch_adam says so; else what DeepSpeed's FusedAdam is."""
    decoupled = params.pop("adam_w_mode", True) or kind.lower() == "adamw"
    params.pop("fp32_optimizer_states", None)  # for offloading
    if params.pop("torch_adam", False):
        return maker(kind, torch.optim.AdamW if decoupled else torch.optim.Adam, params)
    for key, only in (("bias_correction", True), ("amsgrad", False)):
        if params.pop(key, only) != only:
            raise ConfigError(f"[as_deepspeed] got optimizer.params.{key} {not only}, expected {only}: sherd's Adam "
                              f"has no other; try {'torch_adam true' if key == 'amsgrad' else 'to leave it out'}")
    params.pop("set_grad_none", None)
    own = optim.AdamW if decoupled else optim.Adam
    return maker(kind, own, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, **params},
                 {"lr", "betas", "eps", "weight_decay"})


def maker(kind: str, made: type[Optimizer], params: dict, known: set[str] | None = None) -> Callable[[list], Optimizer]:
    known = known or set(list(inspect.signature(made).parameters)[1:])
    if unknown := sorted(params.keys() - known):
        raise ConfigError(f"[as_deepspeed] got optimizer.params.{unknown[0]} for {kind}, expected "
                          f"{', '.join(sorted(known))}; try to leave it out")
    if "betas" in params:
        params["betas"] = tuple(params["betas"])
    return lambda groups: made(groups, **params)
